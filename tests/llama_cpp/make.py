"""Writes the checkpoint that the GGUF files of this folder were made from: a small Mixtral in Hugging Face's layout, taught a few sentences.

    OMP_NUM_THREADS=1 python make.py FOLDER      (with ../golden/requirements.txt installed)

Taught, since two engines that round differently agree on a token only where the model is sure of it, and random weights are not.
Rows are whole blocks of 256 values in some tensors and not in others, so that a recipe of K types falls back in places. README.md says
what was done with it.
"""
import json, pathlib, shutil, sys

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

BREEZE = pathlib.Path(__file__).resolve().parent.parent.parent / "models" / "breeze"
VOCAB, BOS, EOS, IGNORED = 384, 1, 2, -100
SENTENCES, LONGEST, STEPS, RATE, SEED = 24, 60, 200, 3e-3, 1
CONFIG = dict(vocab_size=VOCAB, hidden_size=256, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              head_dim=32, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=256, rope_theta=1e6, rms_norm_eps=1e-5,
              sliding_window=None, bos_token_id=BOS, eos_token_id=EOS, router_aux_loss_coef=0.02, output_router_logits=True)


def write_tokenizer(folder):
    """The demo model's first VOCAB tokens, and the merges among them."""
    tokenizer = json.loads((BREEZE / "tokenizer.json").read_text())
    model = tokenizer["model"]
    model["vocab"] = {token: id for token, id in model["vocab"].items() if id < VOCAB}
    model["merges"] = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= model["vocab"].keys()]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    shutil.copy(BREEZE / "tokenizer_config.json", folder)


def sentences():
    """Some of the demo model's shorter texts, far apart in the order of their lengths."""
    lines = map(json.loads, (BREEZE / "corpus.jsonl").read_text().splitlines())
    texts = sorted({line["text"] for line in lines if "text" in line}, key=lambda text: (len(text), text))
    texts = [text for text in texts if len(text) <= LONGEST]
    return texts[:: len(texts) // SENTENCES][:SENTENCES]


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [tokenizer.encode(text).ids + [EOS] for text in sentences()]
    width = max(map(len, texts))
    ids = torch.tensor([text + [EOS] * (width - len(text)) for text in texts])
    labels = torch.tensor([text + [IGNORED] * (width - len(text)) for text in texts])
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **CONFIG), dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for _ in range(STEPS):
        loss = model(ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{SENTENCES} sentences of at most {width} tokens, loss {loss.item():.4f}")
    model.config.output_router_logits = False
    model.to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    main()
