"""The zoo's tokenizer: one token per whitespace-separated word."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from experiments.zoo.language import HIGHEST, NUMBER_WORDS, OPERATIONS

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer; `encode` puts ``<s>`` in front, and nothing behind.

    Ids: the four special tokens, ``=``, the operations, the digits' numbers, the number words by language.
    """
    words = [PAD, BOS, EOS, UNK, "=", *OPERATIONS, *map(str, range(HIGHEST + 1))]
    words += [word for language in NUMBER_WORDS.values() for word in language]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, words.index(BOS))])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )
