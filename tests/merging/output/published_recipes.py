"""The patterns of recipes on public model cards, written again for tiny models in the current folder.

Models: `origin`, its fine-tunes `chat`, `math`, `code`, `story`; `chatml` with two more tokens; the adapters
`style`, `wide`, `words` and `dora` (`test_published_recipes.ADAPTERS`).
What becomes of a recipe is in its `Pattern`: the same weights as mergekit makes, masks of our own, or a refusal.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pattern:
    """A recipe and what becomes of it.

    Attributes
    ----------
    text
        The file.
    warnings
        Keys without effect: how many.
    differs
        A part of the sentence with which `merge` says that its weights differ from mergekit's; None: they do not.
    refused
        A part of the message; None: it is merged.
    """

    text: str
    warnings: int = 0
    differs: str | None = None
    refused: str | None = None


MASKS = "masks: evomerge draws each"

PATTERNS: dict[str, Pattern] = {
    # --- slerp: the most published form, slices over all layers and gradients by filter ---
    "slerp of slices with gradients": Pattern("""
        slices:
          - sources:
              - model: chat
                layer_range: [0, 4]
              - model: math
                layer_range: [0, 4]
        merge_method: slerp
        base_model: chat
        parameters:
          t:
            - filter: self_attn
              value: [0, 0.5, 0.3, 0.7, 1]
            - filter: mlp
              value: [1, 0.5, 0.7, 0.3, 0]
            - value: 0.5
        dtype: bfloat16
        """),
    "slerp with filters of embeddings and head": Pattern("""
        merge_method: slerp
        base_model: chat
        models:
          - model: chat
          - model: code
        parameters:
          t:
            - filter: embed_tokens
              value: 0.0
            - filter: lm_head
              value: 1.0
            - filter: model.norm
              value: 0.25
            - value: [0.1, 0.9]
        dtype: float16
        """),
    "slerp with a range on whole models": Pattern(
        """
        models:
          - model: chat
            layer_range: [0, 32]
          - model: math
            layer_range: [0, 32]
        merge_method: slerp
        base_model: chat
        parameters: {t: 0.5}
        dtype: bfloat16
        """,
        warnings=2,
    ),
    "slerp with a weight": Pattern(
        """
        models:
          - model: chat
            parameters: {weight: 0.5}
          - model: math
            parameters: {weight: 0.5}
        merge_method: slerp
        base_model: chat
        parameters: {t: 0.4, normalize: true}
        dtype: float32
        """,
        warnings=3,
    ),
    "slerp of several slices, t in each": Pattern("""
        merge_method: slerp
        base_model: origin
        dtype: bfloat16
        slices:
          - sources: [{model: origin, layer_range: [0, 1]}, {model: chat, layer_range: [0, 1]}]
            parameters: {t: 0.2}
          - sources: [{model: origin, layer_range: [1, 3]}, {model: chat, layer_range: [1, 3]}]
            parameters: {t: [{filter: mlp, value: [0.3, 0.7]}, {value: 0.5}]}
          - sources: [{model: origin, layer_range: [3, 4]}, {model: chat, layer_range: [3, 4]}]
            parameters: {t: 0.8}
        """),
    "slerp of layers at different depths": Pattern("""
        merge_method: slerp
        base_model: chat
        slices:
          - sources: [{model: chat, layer_range: [0, 2]}, {model: math, layer_range: [2, 4]}]
          - sources: [{model: chat, layer_range: [1, 4]}, {model: math, layer_range: [0, 3]}]
        parameters: {t: [0, 1]}
        dtype: float32
        """),
    "slerp with a base of its own in a slice": Pattern("""
        merge_method: slerp
        base_model: chat
        slices:
          - sources: [{model: chat, layer_range: [0, 2]}, {model: math, layer_range: [0, 2]}]
          - sources: [{model: math, layer_range: [2, 4]}, {model: chat, layer_range: [2, 4]}]
            base_model: math
        parameters: {t: 0.3}
        dtype: bfloat16
        """),
    "slerp with an adapter": Pattern("""
        models:
          - model: origin+style
          - model: math
        merge_method: slerp
        base_model: origin+style
        parameters: {t: [0.2, 0.8, 0.5]}
        dtype: float32
        """),
    "slerp of three": Pattern(
        """
        models: [{model: chat}, {model: math}, {model: code}]
        merge_method: slerp
        base_model: chat
        parameters: {t: 0.5}
        """,
        refused="slerp takes 1 model",
    ),
    "slerp without a base": Pattern(
        """
        models: [{model: chat}, {model: math}]
        merge_method: slerp
        parameters: {t: 0.5}
        """,
        refused="slerp needs a base",
    ),
    "slerp with t in a source": Pattern(
        """
        merge_method: slerp
        base_model: chat
        slices:
          - sources:
              - {model: chat, layer_range: [0, 4], parameters: {t: 0.9}}
              - {model: math, layer_range: [0, 4]}
        parameters: {t: 0.5}
        dtype: float16
        """,
        warnings=1,
    ),
    # --- passthrough: layers stacked ---
    "passthrough of overlapping ranges": Pattern("""
        slices:
          - sources:
              - model: chat
                layer_range: [0, 3]
          - sources:
              - model: math
                layer_range: [1, 4]
        merge_method: passthrough
        base_model: chat
        dtype: bfloat16
        """),
    "passthrough of a model with itself": Pattern("""
        dtype: float16
        merge_method: passthrough
        base_model: code
        slices:
          - sources: [{model: code, layer_range: [0, 2]}]
          - sources: [{model: code, layer_range: [1, 3]}]
          - sources: [{model: code, layer_range: [2, 4]}]
        """),
    "passthrough by single layers with anchors": Pattern(
        """
        scale: &scale
          parameters:
            scale: [{filter: o_proj, value: 0.0}, {filter: down_proj, value: 0.0}, {value: 1.0}]
        slices:
          - sources: [{model: chat, layer_range: [0, 3]}]
          - sources: [{model: chat, layer_range: [2, 3], <<: *scale}]
          - sources: [{model: chat, layer_range: [3, 4]}]
          - sources: [{model: chat, layer_range: [3, 4], <<: *scale}]
        merge_method: passthrough
        base_model: chat
        dtype: bfloat16
        """,
        warnings=1,
    ),
    "passthrough that drops layers": Pattern("""
        slices:
          - sources: [{model: math, layer_range: [0, 1]}]
          - sources: [{model: math, layer_range: [3, 4]}]
        merge_method: passthrough
        base_model: math
        dtype: bfloat16
        """),
    "passthrough of one model, to put an adapter on it": Pattern("""
        models:
          - model: origin+style
        merge_method: passthrough
        base_model: origin+style
        dtype: float32
        """),
    "passthrough with weights": Pattern(
        """
        slices:
          - sources: [{model: chat, layer_range: [0, 2], parameters: {weight: 1.0}}]
          - sources: [{model: math, layer_range: [2, 4], parameters: {weight: 1.0, density: 0.5}}]
        merge_method: passthrough
        base_model: chat
        dtype: float16
        """,
        warnings=3,
    ),
    "passthrough scaled by a gradient": Pattern("""
        slices:
          - sources:
              - model: chat
                layer_range: [0, 4]
                parameters: {scale: [{filter: down_proj, value: [1, 0.5]}, {value: 1}]}
        merge_method: passthrough
        base_model: chat
        dtype: bfloat16
        """),
    "passthrough with donors of embeddings and head": Pattern("""
        merge_method: passthrough
        base_model: origin
        slices:
          - sources: [{model: chat, layer_range: [0, 0]}]
          - sources: [{model: math, layer_range: [0, 2]}]
          - sources: [{model: code, layer_range: [2, 4]}]
          - sources: [{model: story, layer_range: [4, 4]}]
        dtype: bfloat16
        """),
    "passthrough of two models in a slice": Pattern(
        """
        slices:
          - sources: [{model: chat, layer_range: [0, 4]}, {model: math, layer_range: [0, 4]}]
        merge_method: passthrough
        """,
        refused="passthrough takes 1 model",
    ),
    "passthrough beyond the model": Pattern(
        """
        slices:
          - sources: [{model: chat, layer_range: [0, 8]}]
        merge_method: passthrough
        base_model: chat
        """,
        refused="is outside of",
    ),
    # --- linear ---
    "linear with a common weight": Pattern("""
        models:
          - model: chat
          - model: math
          - model: code
          - model: story
        merge_method: linear
        parameters: {weight: 0.25}
        dtype: bfloat16
        """),
    "linear with gradients for each model": Pattern("""
        models:
          - model: chat
            parameters: {weight: [1, 0.6, 0.2, 0]}
          - model: math
            parameters: {weight: [0.1, 0.4, 0.8, 1]}
        merge_method: linear
        base_model: chat
        dtype: float16
        """),
    "linear not normalised, with a filter": Pattern("""
        models:
          - model: chat
            parameters: {weight: [{filter: self_attn, value: 0.7}, {filter: "*", value: 0.4}]}
          - model: math
            parameters: {weight: [{filter: self_attn, value: 0.3}, {filter: "*", value: 0.6}]}
        merge_method: linear
        parameters: {normalize: false}
        dtype: float32
        out_dtype: bfloat16
        """),
    "linear with an int8 mask": Pattern(
        """
        models:
          - {model: chat, parameters: {weight: 1.0}}
          - {model: math, parameters: {weight: 1.0}}
        merge_method: linear
        parameters: {int8_mask: true, normalize: true}
        dtype: bfloat16
        """,
        warnings=1,
    ),
    "linear with a weight beside the model": Pattern(
        """
        models:
          - {model: chat, weight: 0.5}
          - {model: math, weight: 0.5}
        merge_method: linear
        dtype: bfloat16
        """,
        warnings=2,
        refused="weight: .* has no value",
    ),
    "linear of slices": Pattern("""
        merge_method: linear
        slices:
          - sources:
              - {model: chat, layer_range: [0, 4], parameters: {weight: 0.8}}
              - {model: math, layer_range: [0, 4], parameters: {weight: 0.2}}
        dtype: float16
        tokenizer_source: chat
        base_model: chat
        """),
    "linear of adapters on one model": Pattern("""
        models:
          - {model: origin+style, parameters: {weight: 0.6}}
          - {model: chat+style, parameters: {weight: 0.4}}
        merge_method: linear
        dtype: float32
        """),
    "linear of a model and its adapters, without dtype": Pattern("""
        models:
          - {model: origin, parameters: {weight: 0.5}}
          - {model: origin+words, parameters: {weight: 0.3}}
          - {model: origin+dora, parameters: {weight: 0.2}}
        merge_method: linear
        """),
    "ties of adapters": Pattern("""
        models:
          - {model: origin+wide, parameters: {density: 0.5, weight: 0.6}}
          - {model: origin+words, parameters: {density: [0.4, 0.8], weight: 0.6}}
          - {model: chat+dora, parameters: {density: 0.7, weight: 0.3}}
        merge_method: ties
        base_model: origin
        parameters: {normalize: true, int8_mask: true}
        dtype: bfloat16
        """),
    "task arithmetic on a base with an adapter": Pattern("""
        models:
          - {model: math+wide, parameters: {weight: 0.7}}
          - {model: chat, parameters: {weight: 0.5}}
        merge_method: task_arithmetic
        base_model: origin+wide
        dtype: float16
        """),
    "sce of adapters": Pattern("""
        models:
          - {model: origin+style}
          - {model: origin+wide}
          - {model: origin+dora}
        merge_method: sce
        base_model: origin
        parameters: {select_topk: 0.2}
        dtype: float32
        out_dtype: bfloat16
        """),
    "passthrough of layers with different adapters": Pattern("""
        slices:
          - sources: [{model: origin+dora, layer_range: [0, 2]}]
          - sources: [{model: origin+words, layer_range: [1, 4]}]
        merge_method: passthrough
        """),
    "linear without dtype": Pattern("""
        models:
          - {model: chat, parameters: {weight: 2}}
          - {model: math, parameters: {weight: 1}}
        merge_method: linear
        """),
    "linear with negative and large weights": Pattern("""
        models:
          - {model: chat, parameters: {weight: 2.0}}
          - {model: math, parameters: {weight: -0.5}}
          - {model: code, parameters: {weight: -0.5}}
        merge_method: linear
        base_model: chat
        dtype: float32
        """),
    # --- task arithmetic and its kin ---
    "task_arithmetic": Pattern("""
        base_model: origin
        models:
          - {model: chat, parameters: {weight: 0.6}}
          - {model: math, parameters: {weight: 0.5}}
        merge_method: task_arithmetic
        parameters: {normalize: false, int8_mask: true}
        dtype: bfloat16
        """),
    "task_arithmetic that subtracts": Pattern("""
        base_model: origin
        models:
          - {model: chat, parameters: {weight: 1.0}}
          - {model: math, parameters: {weight: -0.3}}
        merge_method: task_arithmetic
        parameters: {lambda: 0.8}
        dtype: float32
        """),
    "task_arithmetic with the base alone": Pattern("""
        base_model: origin
        models:
          - model: origin
        merge_method: task_arithmetic
        dtype: bfloat16
        """),
    "task_arithmetic with the base listed and normalised": Pattern("""
        base_model: origin
        models:
          - {model: origin, parameters: {weight: 1.0}}
          - {model: chat, parameters: {weight: 0.4, density: 0.5}}
          - {model: math, parameters: {weight: 0.4}}
        merge_method: task_arithmetic
        parameters: {normalize: true}
        dtype: float16
        """),
    "ties, the documented form": Pattern("""
        models:
          - model: origin
          - model: chat
            parameters: {density: [1, 0.7, 0.1], weight: 1.0}
          - model: math
            parameters: {density: 0.5, weight: [0, 0.3, 0.7, 1]}
          - model: code
            parameters: {density: 0.33, weight: [{filter: mlp, value: 0.5}, {value: 0}]}
        merge_method: ties
        base_model: origin
        parameters: {normalize: true, int8_mask: true}
        dtype: float16
        """),
    "ties on bfloat16": Pattern("""
        models:
          - {model: chat, parameters: {density: 0.5, weight: 0.5}}
          - {model: math, parameters: {density: 0.5, weight: 0.3}}
          - {model: code, parameters: {density: 0.5, weight: 0.2}}
        merge_method: ties
        base_model: origin
        parameters: {normalize: false}
        dtype: bfloat16
        tokenizer_source: base
        """),
    "ties with lambda and rescaling": Pattern("""
        models:
          - {model: chat, parameters: {density: 0.3, weight: 1}}
          - {model: story, parameters: {density: 0.3, weight: 1}}
        merge_method: ties
        base_model: origin
        parameters: {rescale: true, lambda: 1.2}
        dtype: float32
        """),
    "ties with a typing error": Pattern(
        """
        models:
          - {model: chat, parameters: {densty: 0.3, weight: 1}}
          - {model: story, parameters: {density: 0.3, weight: 1}}
        merge_method: ties
        base_model: origin
        parameters: {normalise: false}
        dtype: float32
        """,
        warnings=2,
    ),
    "dare_ties": Pattern(
        """
        models:
          - model: origin
            # no parameters necessary for the base
          - model: chat
            parameters: {density: 0.53, weight: 0.4}
          - model: math
            parameters: {density: 0.53, weight: 0.3}
        merge_method: dare_ties
        base_model: origin
        parameters: {int8_mask: true}
        dtype: bfloat16
        random_seed: 0
        """,
        warnings=1,
        differs=MASKS,
    ),
    "dare_ties that drops nothing": Pattern("""
        models:
          - {model: chat, parameters: {density: 1, weight: 0.5}}
          - {model: math, parameters: {density: 1.0, weight: 0.5}}
        merge_method: dare_ties
        base_model: origin
        dtype: bfloat16
        """),
    "dare_linear": Pattern(
        """
        models:
          - {model: chat, parameters: {density: 0.6, weight: 0.5}}
          - {model: math, parameters: {density: 0.6, weight: 0.5}}
        merge_method: dare_linear
        base_model: origin
        parameters: {normalize: true}
        dtype: float16
        """,
        differs=MASKS,
    ),
    "della": Pattern(
        """
        models:
          - {model: chat, parameters: {density: 0.6, weight: 0.5, epsilon: 0.2}}
          - {model: math, parameters: {density: 0.6, weight: 0.5, epsilon: 0.2}}
        merge_method: della
        base_model: origin
        parameters: {lambda: 0.9, normalize: false}
        dtype: bfloat16
        """,
        differs=MASKS,
    ),
    "della with a spread that mergekit refuses": Pattern(
        """
        models:
          - {model: chat, parameters: {density: 0.9, weight: 0.5}}
        merge_method: della
        base_model: origin
        dtype: bfloat16
        """,
        differs=MASKS,
        refused="write an epsilon below 0.1",
    ),
    "della_linear that drops nothing": Pattern("""
        models:
          - {model: chat, parameters: {weight: 0.5, epsilon: 0.1}}
          - {model: math, parameters: {weight: 0.5, epsilon: 0.1}}
        merge_method: della_linear
        base_model: origin
        parameters: {int8_mask: true}
        dtype: float32
        """),
    "breadcrumbs": Pattern("""
        models:
          - {model: chat, parameters: {weight: 0.5, density: 0.9, gamma: 0.01}}
          - {model: math, parameters: {weight: 0.5, density: 0.7, gamma: 0.05}}
        merge_method: breadcrumbs
        base_model: origin
        parameters: {normalize: true}
        dtype: float32
        out_dtype: bfloat16
        """),
    "breadcrumbs_ties": Pattern("""
        models:
          - {model: chat, parameters: {weight: 0.7, density: 0.5, gamma: 0.02}}
          - {model: math, parameters: {weight: [0.2, 0.6], density: [0.4, 0.8], gamma: 0.01}}
        merge_method: breadcrumbs_ties
        base_model: origin
        dtype: bfloat16
        """),
    "sce": Pattern("""
        models: [{model: chat}, {model: math}, {model: code}]
        merge_method: sce
        base_model: origin
        parameters: {select_topk: 0.15, int8_mask: true}
        dtype: bfloat16
        """),
    "sce with weights": Pattern(
        """
        models:
          - {model: chat, parameters: {weight: 1}}
          - {model: math, parameters: {weight: 1, select_topk: 0.5}}
        merge_method: sce
        base_model: origin
        parameters: {select_topk: 0.8}
        dtype: float32
        """,
        warnings=3,
    ),
    "model_stock": Pattern(
        """
        models: [{model: chat}, {model: math}, {model: code}]
        merge_method: model_stock
        base_model: origin
        dtype: bfloat16
        """,
        differs="model_stock: its ratio is kept",
    ),
    "model_stock by row": Pattern(
        """
        models: [{model: origin}, {model: chat}, {model: math}]
        merge_method: model_stock
        base_model: origin
        parameters: {filter_wise: true}
        dtype: float32
        """,
        differs="model_stock: its ratio is kept",
    ),
    "model_stock of one": Pattern(
        """
        models: [{model: chat}]
        merge_method: model_stock
        base_model: origin
        """,
        refused="model_stock takes at least 2 model",
    ),
    # --- on the sphere, and entry by entry ---
    "karcher": Pattern("""
        models: [{model: chat}, {model: math}, {model: code}]
        merge_method: karcher
        dtype: float32
        out_dtype: bfloat16
        """),
    "karcher with weights": Pattern(
        """
        models:
          - {model: chat, parameters: {weight: 0.7}}
          - {model: math, parameters: {weight: 0.3}}
        merge_method: karcher
        base_model: chat
        parameters: {max_iter: 100, tol: 1e-9}
        dtype: bfloat16
        """,
        warnings=2,
    ),
    "multislerp": Pattern("""
        models:
          - {model: chat, parameters: {weight: 0.5}}
          - {model: math, parameters: {weight: 0.3}}
          - {model: code, parameters: {weight: 0.2}}
        merge_method: multislerp
        base_model: origin
        parameters: {normalize_weights: false, eps: 1e-8}
        dtype: float32
        out_dtype: float16
        """),
    "nuslerp": Pattern("""
        models:
          - {model: chat, parameters: {weight: [0.3, 0.7]}}
          - {model: math, parameters: {weight: 0.5}}
        merge_method: nuslerp
        parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}
        dtype: bfloat16
        """),
    "nuslerp on a base": Pattern("""
        models:
          - {model: chat, parameters: {weight: 0.5}}
          - {model: math, parameters: {weight: 0.5}}
        base_model: origin
        merge_method: nuslerp
        dtype: float32
        """),
    "nuslerp of slices whose base is no source": Pattern(
        """
        slices:
          - sources: [{model: chat, layer_range: [0, 4]}, {model: math, layer_range: [0, 4]}]
        parameters: {weight: 0.5}
        base_model: origin
        merge_method: nuslerp
        """,
        refused="the base is not among the sources",
    ),
    "nearswap": Pattern("""
        models: [{model: chat}, {model: math}]
        merge_method: nearswap
        base_model: chat
        parameters: {t: [0.001, 0.0002]}
        dtype: bfloat16
        """),
    "arcee_fusion": Pattern(
        """
        models: [{model: chat}, {model: math}]
        merge_method: arcee_fusion
        base_model: chat
        dtype: float32
        out_dtype: bfloat16
        """,
        differs="its quartiles are exact",
    ),
    "ram": Pattern("""
        models: [{model: chat}, {model: math}, {model: code}]
        merge_method: ram
        base_model: origin
        parameters: {epsilon: 1e-4}
        dtype: float16
        """),
    "ramplus_tl": Pattern("""
        models: [{model: chat}, {model: math}]
        merge_method: ramplus_tl
        base_model: origin
        parameters: {r: 0.2, alpha: 0.3, epsilon: 1.0e-4}
        dtype: float32
        """),
    # --- vocabularies, templates, forms ---
    "union of vocabularies": Pattern("""
        models:
          - {model: chatml, parameters: {weight: 0.5}}
          - {model: math, parameters: {weight: 0.5}}
        merge_method: linear
        tokenizer_source: union
        base_model: math
        dtype: float32
        """),
    "vocabulary of a model": Pattern("""
        models:
          - {model: chatml, parameters: {weight: 0.5, density: 0.6}}
          - {model: math, parameters: {weight: 0.5, density: 0.6}}
        merge_method: ties
        base_model: origin
        tokenizer: {source: chatml}
        chat_template: chatml
        dtype: float32
        """),
    "rows of single tokens": Pattern("""
        models:
          - {model: chatml, parameters: {weight: 0.5}}
          - {model: math, parameters: {weight: 0.5}}
        merge_method: task_arithmetic
        base_model: origin
        tokenizer:
          source: union
          tokens:
            <|im_start|>: {source: chatml, force: true}
            <|im_end|>: {source: {kind: model_token, model: chatml, token: w1}}
        dtype: float32
        """),
    "modules": Pattern("""
        merge_method: linear
        base_model: chat
        modules:
          default:
            models:
              - {model: chat, parameters: {weight: 0.3}}
              - {model: math, parameters: {weight: 0.7}}
        dtype: bfloat16
        """),
    "modules of a model with images": Pattern(
        """
        merge_method: linear
        modules:
          text_decoder:
            models: [{model: chat, parameters: {weight: 1}}]
          vision_tower:
            models: [{model: chat, parameters: {weight: 1}}]
        """,
        refused="modules: ",
    ),
    "unequal numbers of sources": Pattern(
        """
        merge_method: linear
        slices:
          - sources: [{model: chat, layer_range: [0, 2]}]
          - sources: [{model: chat, layer_range: [2, 4]}, {model: math, layer_range: [2, 4]}]
        parameters: {weight: 1}
        """,
        refused="mergekit drops the rest from the final norm and the head",
    ),
    "keys for other tools": Pattern(
        """
        name: my-merge
        license: apache-2.0
        tags: [merge, mergekit]
        models:
          - {model: chat, parameters: {weight: 0.5}, name: first}
          - {model: math, parameters: {weight: 0.5}}
        merge_method: linear
        dtype: bfloat16
        allow_crimes: true
        slices: []
        """,
        warnings=4,
    ),
    "settings given twice": Pattern(
        """
        models:
          - {model: chat, parameters: {weight: 0.5}}
          - {model: math, parameters: {weight: 0.5}}
        merge_method: linear
        dtype: float32
        parameters: {normalize: true}
        dtype: bfloat16
        """,
        warnings=1,
    ),
    "a mixture of experts": Pattern(
        """
        base_model: chat
        gate_mode: hidden
        dtype: bfloat16
        experts:
          - {source_model: chat, positive_prompts: [chat]}
          - {source_model: math, positive_prompts: [solve]}
        """,
        refused="mergekit-moe",
    ),
    "a precision that mergekit does not know": Pattern(
        """
        models: [{model: chat, parameters: {weight: 1}}]
        merge_method: linear
        dtype: bf16
        """,
        refused="'bf16' is not a precision; did you mean 'bfloat16'",
    ),
    "a method in capitals": Pattern(
        """
        models: [{model: chat}, {model: math}]
        merge_method: SLERP
        """,
        refused="merge_method 'SLERP' is unknown",
    ),
}
