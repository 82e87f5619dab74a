"""Recipes as mergekit's documentation teaches to write them, for tiny models in the current folder.

The comment before each says which documented feature it covers.
"""

RECIPES = {
    # A weight for each model, a precision, no base.
    "linear": """
        merge_method: linear
        models:
          - model: chat
            parameters: {weight: 1.0}
          - model: math
            parameters: {weight: 0.3}
          - model: code
            parameters: {weight: 0.5}
        dtype: float16
        """,
    # A shared parameter switched off; a number that YAML 1.1 reads as text.
    "linear without normalising": """
        merge_method: linear
        models:
          - model: chat
            parameters: {weight: 0.5}
          - model: math
            parameters: {weight: 5e-1}
        parameters: {normalize: false}
        dtype: float32
        """,
    # Slices over all layers; gradients by filter, with a fallback for the rest.
    "slerp gradient": """
        merge_method: slerp
        base_model: chat
        slices:
          - sources:
              - {model: chat, layer_range: [0, 4]}
              - {model: math, layer_range: [0, 4]}
        parameters:
          t:
            - filter: self_attn
              value: [0, 0.5, 0.3, 0.7, 1]
            - filter: mlp
              value: [1, 0.5, 0.7, 0.3, 0]
            - value: 0.5
        dtype: float16
        """,
    # The same as whole models; the base need not be listed.
    "slerp models": """
        merge_method: slerp
        base_model: chat
        models:
          - model: math
        parameters: {t: 0.4}
        dtype: bfloat16
        """,
    # Two models without a base, as one vector per tensor.
    "nuslerp": """
        merge_method: nuslerp
        models:
          - model: chat
            parameters: {weight: 0.7}
          - model: math
            parameters: {weight: 0.5}
        dtype: float32
        """,
    # Task vectors on a base, by columns and by rows.
    "nuslerp on a base, by column": """
        merge_method: nuslerp
        base_model: origin
        models:
          - model: chat
            parameters: {weight: 0.7}
          - model: math
            parameters: {weight: 0.5}
        parameters: {nuslerp_flatten: false, nuslerp_row_wise: false}
        dtype: float32
        """,
    "nuslerp by row": """
        merge_method: nuslerp
        models:
          - model: chat
            parameters: {weight: 0.2}
          - model: code
            parameters: {weight: 0.6}
        parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}
        dtype: float32
        """,
    # More than two models; all shared parameters written out.
    "multislerp": """
        merge_method: multislerp
        models:
          - model: chat
            parameters: {weight: 0.5}
          - model: math
            parameters: {weight: 0.3}
          - model: code
            parameters: {weight: 0.4}
        parameters: {normalize_weights: true, eps: 1.0e-8}
        dtype: float32
        """,
    "multislerp on a base": """
        merge_method: multislerp
        base_model: origin
        models:
          - model: chat
            parameters: {weight: 0.5}
          - model: math
            parameters: {weight: 0.5}
        dtype: float32
        """,
    "karcher": """
        merge_method: karcher
        models:
          - model: chat
          - model: math
          - model: code
        parameters: {max_iter: 20, tol: 1.0e-6}
        dtype: float32
        """,
    # A factor for the sum, and a weight for all models in the outermost scope.
    "task_arithmetic": """
        merge_method: task_arithmetic
        base_model: origin
        models:
          - model: chat
          - model: math
        parameters: {weight: 0.4, lambda: 0.9}
        dtype: float32
        """,
    # Densities and weights as gradients and by filter, masks in 8 bits; the base listed among the models.
    "ties": """
        merge_method: ties
        base_model: origin
        models:
          - model: origin
          - model: chat
            parameters:
              density: [1, 0.7, 0.1]
              weight: 1.0
          - model: math
            parameters:
              density: 0.5
              weight: [0, 0.3, 0.7, 1]
          - model: code
            parameters:
              density: 0.33
              weight:
                - filter: mlp
                  value: 0.5
                - value: 0
        parameters: {normalize: true, int8_mask: true}
        dtype: float16
        """,
    "ties without normalising": """
        merge_method: ties
        base_model: origin
        models:
          - model: chat
            parameters: {density: 0.5, weight: 0.5}
          - model: math
            parameters: {density: 0.5, weight: 0.5}
        parameters: {normalize: false, int8_mask: true, lambda: 1.2}
        dtype: float32
        """,
    "dare_linear": """
        merge_method: dare_linear
        base_model: origin
        models:
          - model: chat
            parameters: {density: 0.6, weight: 0.5}
          - model: math
            parameters: {density: 0.8, weight: 0.5}
        parameters: {rescale: true, normalize: false}
        dtype: bfloat16
        """,
    "dare_ties": """
        merge_method: dare_ties
        base_model: origin
        models:
          - model: chat
            parameters: {density: 0.53, weight: 0.4}
          - model: math
            parameters: {density: 0.53, weight: 0.3}
          - model: code
            parameters: {density: 0.53, weight: 0.3}
        parameters: {int8_mask: true, lambda: 1.1}
        dtype: bfloat16
        """,
    "della": """
        merge_method: della
        base_model: origin
        models:
          - model: chat
            parameters: {density: 0.5, weight: 0.6, epsilon: 0.1}
          - model: math
            parameters: {density: 0.6, weight: 0.4, epsilon: 0.05}
        parameters: {lambda: 1.0, normalize: true, int8_mask: true}
        dtype: bfloat16
        """,
    "della_linear": """
        merge_method: della_linear
        base_model: origin
        models:
          - model: chat
            parameters: {density: [0.4, 0.6], weight: 0.6, epsilon: 0.1}
          - model: math
            parameters: {density: 0.6, weight: 0.4, epsilon: 0.05}
        parameters: {lambda: 1.0}
        dtype: bfloat16
        """,
    "breadcrumbs": """
        merge_method: breadcrumbs
        base_model: origin
        models:
          - model: chat
            parameters: {density: 0.9, gamma: 0.01, weight: 0.5}
          - model: math
            parameters: {density: 0.8, gamma: 0.05, weight: 0.5}
        dtype: float32
        """,
    "breadcrumbs_ties": """
        merge_method: breadcrumbs_ties
        base_model: origin
        models:
          - model: chat
            parameters: {density: 0.9, gamma: 0.01, weight: 0.5}
          - model: math
            parameters: {density: 0.8, gamma: 0.05, weight: 0.5}
        parameters: {lambda: 0.8}
        dtype: float32
        """,
    "sce": """
        merge_method: sce
        base_model: origin
        models:
          - model: chat
          - model: math
          - model: code
        parameters: {select_topk: 0.1}
        dtype: float32
        """,
    "model_stock": """
        merge_method: model_stock
        base_model: origin
        models:
          - model: chat
          - model: math
          - model: code
        dtype: float32
        """,
    "model_stock by row": """
        merge_method: model_stock
        base_model: origin
        models:
          - model: chat
          - model: math
        parameters: {filter_wise: true}
        dtype: float32
        """,
    # Two models, entry by entry.
    "nearswap": """
        merge_method: nearswap
        base_model: chat
        models:
          - model: math
        parameters: {t: 0.005}
        dtype: float32
        """,
    "arcee_fusion": """
        merge_method: arcee_fusion
        base_model: chat
        models:
          - model: chat
          - model: math
        dtype: float32
        """,
    "ram": """
        merge_method: ram
        base_model: origin
        models:
          - model: chat
          - model: math
        dtype: float32
        """,
    "ramplus_tl": """
        merge_method: ramplus_tl
        base_model: origin
        models:
          - model: chat
          - model: math
          - model: code
        parameters: {r: 0.1, alpha: 0.2, epsilon: 1.0e-3}
        dtype: float32
        """,
    # A deeper model out of overlapping parts, with no base named.
    "passthrough": """
        merge_method: passthrough
        slices:
          - sources:
              - model: chat
                layer_range: [0, 3]
          - sources:
              - model: math
                layer_range: [1, 4]
        dtype: float16
        """,
    # Some tensors of a slice scaled, by filter.
    "passthrough scaled": """
        merge_method: passthrough
        base_model: chat
        slices:
          - sources: [{model: chat, layer_range: [0, 2]}]
          - sources:
              - model: chat
                layer_range: [1, 4]
                parameters:
                  scale:
                    - filter: o_proj
                      value: 0.0
                    - filter: down_proj
                      value: 0.5
                    - value: 1.0
        dtype: bfloat16
        """,
    # Parameters in every scope: source, slice, whole; the narrowest that says anything wins.
    "scopes": """
        merge_method: task_arithmetic
        base_model: origin
        slices:
          - sources:
              - {model: origin, layer_range: [0, 2]}
              - {model: chat, layer_range: [0, 2], parameters: {weight: [0.2, 0.8]}}
              - {model: math, layer_range: [0, 2]}
            parameters: {weight: [{filter: mlp, value: 0.7}]}
          - sources:
              - {model: origin, layer_range: [2, 4]}
              - {model: chat, layer_range: [2, 4]}
              - {model: math, layer_range: [2, 4], parameters: {weight: 0.1}}
        parameters: {weight: 0.3, normalize: false}
        dtype: float32
        """,
    # The one module of a language model named; a result in another precision than the arithmetic.
    "modules": """
        merge_method: linear
        base_model: chat
        modules:
          default:
            slices:
              - sources:
                  - {model: chat, layer_range: [0, 4], parameters: {weight: 0.6}}
                  - {model: math, layer_range: [0, 4], parameters: {weight: 0.4}}
        dtype: float32
        out_dtype: bfloat16
        """,
    # A model as a mapping; a condition that is no list; the tokenizer and template of a model that is not the base.
    "references and tokenizer": """
        merge_method: linear
        base_model: chat
        models:
          - model: {model: {path: chat}}
            parameters: {weight: {filter: "*", value: 0.5}}
          - model: math
            parameters: {weight: 0.5}
        tokenizer_source: math
        chat_template: chatml
        dtype: float32
        """,
    # LoRA adapters put on a model by name; the same adapter on a model that it was not trained on.
    "adapters": """
        merge_method: task_arithmetic
        base_model: origin
        models:
          - model: origin+style
            parameters: {weight: 0.6}
          - model: {model: {path: math}, lora: {path: style}}
            parameters: {weight: 0.3}
          - model: code
            parameters: {weight: 0.2}
        dtype: float32
        """,
    "adapter as base": """
        merge_method: slerp
        base_model: chat+style
        models:
          - model: code
        parameters: {t: [0.2, 0.8]}
        dtype: float32
        """,
    # The newer spelling of a tokenizer, and the most common template among the models.
    "tokenizer section": """
        merge_method: linear
        base_model: chat
        models:
          - model: chat
            parameters: {weight: 0.5}
          - model: math
            parameters: {weight: 0.5}
        tokenizer: {source: base}
        chat_template: auto
        dtype: float32
        """,
    # Rows of single tokens: of one model for all, of another token, zeros; tokens that no model has; padding.
    "tokens": """
        merge_method: task_arithmetic
        base_model: origin
        models:
          - model: chat
            parameters: {weight: 0.5}
          - model: math
            parameters: {weight: 0.5}
        tokenizer:
          source: union
          tokens:
            w7:
              source: math
              force: true
            w9:
              source:
                kind: zero
              force: true
            <|im_start|>:
              source:
                kind: "model_token"
                model: chat
                token: w5
            <|im_end|>:
              source:
                kind: "model_token"
                model: math
                token_id: 3
          pad_to_multiple_of: 8
        dtype: float32
        """,
}

# Files of several documents, as mergekit-multi reads them; a key is the folder of the result.
SEQUENCES = {
    # Two named merges, the second on the first, and a last one without a name.
    "out": """
        name: first-merge
        merge_method: linear
        models:
          - model: chat
          - model: math
        parameters: {weight: 0.5}
        dtype: float32
        ---
        name: second-merge
        merge_method: slerp
        base_model: first-merge  # the one before
        models:
          - model: code+style
        parameters: {t: 0.3}
        dtype: float32
        ---
        merge_method: ties
        base_model: origin
        models:
          - model: second-merge
            parameters: {density: 0.7, weight: 0.5}
          - model: first-merge+style
            parameters: {density: 0.8, weight: 0.5}
        tokenizer_source: base
        dtype: float32
        """,
    # All have names, and the order is not that of their use: layers of a merge are repeated.
    "deeper": """
        name: mixed
        merge_method: task_arithmetic
        base_model: origin
        models:
          - model: chat
            parameters: {weight: 0.7}
          - model: math
            parameters: {weight: 0.4}
        dtype: float32
        ---
        name: deeper
        merge_method: passthrough
        slices:
          - sources: [{model: mixed, layer_range: [0, 3]}]
          - sources: [{model: mixed, layer_range: [1, 4]}]
        dtype: float32
        """,
    # A method for the lower layers and the ends, another for the upper ones.
    "layers": """
        name: lower
        merge_method: ties
        base_model: origin
        models:
          - model: math
            parameters: {weight: 0.8, density: 0.5}
          - model: code
            parameters: {weight: 0.6, density: 0.5}
        dtype: float32
        ---
        name: upper
        merge_method: slerp
        base_model: math
        models:
          - model: code
        parameters: {t: 0.4}
        dtype: float32
        ---
        name: layers
        merge_method: passthrough
        base_model: origin
        slices:
          - sources: [{model: lower, layer_range: [0, 2]}]
          - sources: [{model: upper, layer_range: [2, 4]}]
          - sources: [{model: lower, layer_range: [4, 4]}]
        dtype: float32
        """,
}
