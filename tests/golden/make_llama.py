"""Makes tests/golden/llama-*: small LLaMAs with random weights, and the logits that transformers computes with them.

    python -m venv /tmp/v && /tmp/v/bin/pip install torch==2.13.0 && /tmp/v/bin/pip install transformers==5.24.0
    /tmp/v/bin/python tests/golden/make_llama.py

`plain` is LLaMA 2's shape with grouped queries; `scaled` has what later ones added: a tied head, heads wider than
width / heads, biases, and LLaMA 3's stretched rotary positions. Weights are float32 in `plain`, bfloat16 in `scaled`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
TOKENS = 150  # more than a chunk of examples/llama.py, and than the 64 positions at which `scaled` begins to stretch
COMMON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-3,  # large enough to be seen
    "bos_token_id": 1,
    "eos_token_id": 2,
}
STRETCH = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS = {
    "plain": LlamaConfig(**COMMON, rope_parameters={"rope_type": "default", "rope_theta": 1000.0}),
    "scaled": LlamaConfig(
        **COMMON,
        head_dim=12,
        tie_word_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters=STRETCH | {"rope_theta": 500.0},
    ),
}


def main() -> None:
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                centre = 1.0 if "norm" in parameter_name else 0.0
                parameter.normal_(centre, 0.25 if parameter.ndim == 2 else 0.2)
        folder = HERE / f"llama-{name}"
        (model.to(torch.bfloat16) if name == "scaled" else model).save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        # Loaded again, for `to` rounds the rotary frequencies as well.
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(torch.float64)
        ids = torch.randint(0, config.vocab_size, (1, TOKENS))
        with torch.no_grad():
            logits = model(ids).logits[0].float().contiguous()
        save_file({"ids": ids[0], "logits": logits}, folder / "expected.safetensors")
        for file in folder.iterdir():
            file.chmod(0o644)
        print(folder, float(logits.std()), sum(file.stat().st_size for file in folder.iterdir()))


if __name__ == "__main__":
    main()
