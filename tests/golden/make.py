"""Makes the golden fixtures of this folder: what Hugging Face transformers computes, for the engine to be held against.

    python3 -m venv /tmp/golden-venv && /tmp/golden-venv/bin/pip install -r requirements.txt
    OMP_NUM_THREADS=1 /tmp/golden-venv/bin/python make.py [CASE | breeze ...]      (all of them, unless some are named)

A case is a folder with a small random checkpoint (Mixtral, or Qwen3-MoE) and fixture.json; `breeze` is breeze.json and questions.json, of the
demo model in models/breeze. The reference runs in float32 with eager attention on the weights as stored, teacher-forced: one
forward pass over a whole prompt. README.md says what the fixtures hold and which seeds are refused.
"""
import json, pathlib, shutil, sys
from dataclasses import dataclass, field

import torch, transformers
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from breeze_prompts import QUESTIONS, TEXTS

HERE = pathlib.Path(__file__).resolve().parent
BREEZE = HERE.parent.parent / "models" / "breeze"
DIGITS, TOP = 6, 5
ROUTER_GAP = 2e-4  # least gap between the k-th and the (k+1)-th router logit: a nearer tie may fall either way elsewhere
ROUNDING = 2e-4  # most that a log-probability may differ from the same pass in float64: a tenth of the tests' tolerance
MARGIN, PEAKED_SHARE = 0.05, 0.8  # at least this share of positions has a greedy token clear of the runner-up by MARGIN
QUESTION_MARGIN, QUESTION_TOKENS = 0.3, 24
SEEDS = range(200)

# The standard deviation of a matrix is its gain / sqrt(inputs): logits and router logits well spread, attention not uniform.
GAINS = {"embed_tokens": 3.0, "lm_head": 3.0, "mlp.gate": 2.0, "q_proj": 1.5, "k_proj": 1.5, "down_proj": 2.0}


@dataclass
class Case:
    """One checkpoint: what it departs from BASE in, how its files are written, and how long its random prompts are."""
    config: dict
    dtype: torch.dtype = torch.bfloat16
    spelling: str = "new"  # of config.json: "new" (rope_parameters, dtype) or "old" (rope_theta, torch_dtype)
    lengths: list = field(default_factory=lambda: [1, 7, 33, 100])
    shard_size: str = "50GB"
    model_type: str = "mixtral"


BASE = dict(vocab_size=256, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=512, rope_theta=1e6, rms_norm_eps=1e-5, sliding_window=None)
QWEN = dict(intermediate_size=96, moe_intermediate_size=32, rms_norm_eps=1e-6)  # the first is of dense layers, of which there are none
CASES = {
    "gqa": Case(dict(hidden_size=128, intermediate_size=32, vocab_size=384, num_attention_heads=8, num_local_experts=8)),
    "head_dim": Case(dict(head_dim=32, rope_theta=1e4), torch.float32, "old"),
    "tied": Case(dict(hidden_size=96, intermediate_size=32, num_hidden_layers=3, num_attention_heads=6, tie_word_embeddings=True)),
    "experts16_top4": Case(dict(intermediate_size=32, num_local_experts=16, num_experts_per_tok=4), spelling="old"),
    "top1": Case(dict(num_experts_per_tok=1, rms_norm_eps=1e-6)),
    "window": Case(dict(sliding_window=48), lengths=[1, 48, 200]),
    "long": Case(dict(intermediate_size=32, num_local_experts=8, max_position_embeddings=1024), spelling="old", lengths=[600]),
    "sharded": Case(dict(intermediate_size=32), torch.float32, "old", shard_size="150KB"),
    "f16": Case(dict(), torch.float16, "old"),
    "mha": Case(dict(num_key_value_heads=4, head_dim=None)),
    "qwen3moe": Case(QWEN | dict(head_dim=32, norm_topk_prob=True, num_local_experts=16, num_experts_per_tok=4), torch.float32, "old",
                     model_type="qwen3_moe"),
    "qwen3moe_bf16": Case(QWEN | dict(head_dim=32, norm_topk_prob=True, num_local_experts=8, vocab_size=288), model_type="qwen3_moe"),
    "qwen3moe_tied": Case(QWEN | dict(head_dim=32, norm_topk_prob=False, num_local_experts=8, tie_word_embeddings=True),
                          model_type="qwen3_moe"),
}
# What the files of a model_type are recognised by: some of its tensors.
NAMES = {
    "mixtral": {"model.layers.0.block_sparse_moe.gate.weight", "model.layers.1.block_sparse_moe.experts.3.w1.weight"},
    "qwen3_moe": {"model.layers.0.mlp.gate.weight", "model.layers.0.self_attn.q_norm.weight", "model.layers.1.self_attn.k_norm.weight",
                  *(f"model.layers.1.mlp.experts.7.{part}_proj.weight" for part in ("gate", "up", "down"))},
}


def old_spelling(new, dtype):
    """config.json as Mixtral-8x7B-v0.1 and Qwen3-30B-A3B spell it: transformers before 5."""
    dropped = ("dtype", "rope_parameters", "pad_token_id", "router_jitter_noise", *(["head_dim"] if new["head_dim"] is None else []))
    old = {key: value for key, value in new.items() if key not in dropped}
    old |= dict(rope_theta=new["rope_parameters"]["rope_theta"], torch_dtype=dtype, transformers_version="4.36.0.dev0")
    if old["model_type"] == "qwen3_moe":
        old |= dict(num_experts=old.pop("num_local_experts"), rope_scaling=None, transformers_version="4.51.0")
    return dict(sorted(old.items()))


def write_checkpoint(case, seed, folder):
    """A random model, rounded to the case's dtype, under the tensor names of published checkpoints."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(case.model_type, **BASE | case.config), dtype=torch.float32)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            weight.data = 1 + 0.2 * torch.randn(weight.shape)  # a norm of ones would hide a norm left out
        else:
            gain = next((gain for part, gain in GAINS.items() if part in name), 1.0)
            weight.data = gain / weight.shape[-1] ** 0.5 * torch.randn(weight.shape)
    model.to(case.dtype).save_pretrained(folder, max_shard_size=case.shard_size)
    (folder / "generation_config.json").unlink()
    if case.spelling == "old":
        path = folder / "config.json"
        path.write_text(json.dumps(old_spelling(json.loads(path.read_text()), str(case.dtype).removeprefix("torch.")), indent=2) + "\n")


def load(folder, dtype=torch.float32, **changes):
    """The checkpoint in `folder`, its weights widened to `dtype` (nothing is lost: none is stored wider than float32)."""
    eager = dict(attn_implementation="eager", experts_implementation="eager")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **eager, **changes).eval()


@torch.no_grad()
def forward(model, ids):
    """One pass over `ids`: logits [tokens, vocabulary] and router logits [layers, tokens, experts]."""
    result = model(torch.tensor([ids]), use_cache=False, output_router_logits=True)
    return result.logits[0], torch.stack(result.router_logits)


def margins(logits):
    """How far each position's greedy token lies above the runner-up, in logits."""
    best = logits.topk(2).values
    return best[:, 0] - best[:, 1]


def router_gap(router, k):
    """The nearest call that any router made between taking an expert and leaving it."""
    chosen = router.topk(k + 1).values
    return float((chosen[..., k - 1] - chosen[..., k]).min())


def objection(passes, exact, k):
    """Why these passes make no fair fixture, or None. `exact` holds the logits of the same passes in float64."""
    routers = torch.cat([router for _, router in passes], dim=1)
    margin = torch.cat([margins(logits) for logits, _ in passes])
    rounding = max(float((logits.double().log_softmax(-1) - wide.log_softmax(-1)).abs().max()) for (logits, _), wide in zip(passes, exact))
    chosen = routers.topk(k).indices
    hit = min(len(layer.unique()) for layer in chosen)
    if (gap := router_gap(routers, k)) < ROUTER_GAP: return f"router gap {gap:.1e}"
    if hit < routers.shape[-1]: return f"a layer that uses {hit} of {routers.shape[-1]} experts"
    if (share := float((margin > MARGIN).double().mean())) < PEAKED_SHARE: return f"only {share:.0%} of the positions are peaked"
    return f"float32 is {rounding:.1e} off float64" if rounding > ROUNDING else None


def rounded(tensor):
    return [rounded(row) for row in tensor] if tensor.dim() > 1 else [round(value, DIGITS) for value in tensor.tolist()]


def record(ids, logits):
    """One prompt of a fixture: what follows each position, by the reference."""
    logprobs, top = logits.double().log_softmax(-1), logits.topk(TOP).indices
    following = logprobs[:-1].gather(1, torch.tensor(ids[1:], dtype=torch.long)[:, None])[:, 0]
    return dict(ids=ids, argmax=top[:, 0].tolist(), margin=rounded(margins(logits)), top=top.tolist(),
                top_logprobs=rounded(logprobs.gather(1, top)), next_logprob=rounded(following))


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


def write_fixture(path, name, prompts, **more):
    versions = dict(transformers=transformers.__version__, torch=torch.__version__)
    write_json(path, dict(case=name, **versions, **more, prompts=prompts))


def check_window(folder, ids, logits):
    """A window of w: a token sees itself and the w - 1 before it, so that position w is the first to miss one."""
    window = json.loads((folder / "config.json").read_text())["sliding_window"]
    change = (forward(load(folder, sliding_window=None), ids)[0] - logits).abs().amax(-1)
    assert change[:window].max() < 1e-4 < 1e-2 < change[window:].min(), "the sliding window was not applied"


def check_files(name, case, folder):
    """The names are the model_type's, the dtype is the case's, and the case's name tells the truth about its files."""
    shards = sorted(folder.glob("*.safetensors"))
    assert (len(shards) > 1) == (folder / "model.safetensors.index.json").exists() == (name == "sharded"), shards
    tensors = {}
    for shard in shards:
        with safe_open(shard, "pt") as file: tensors |= {key: file.get_tensor(key) for key in file.keys()}
    assert {tensor.dtype for tensor in tensors.values()} == {case.dtype}
    assert NAMES[case.model_type] <= tensors.keys(), tensors.keys()
    assert ("lm_head.weight" in tensors) == (not case.config.get("tie_word_embeddings", False))


def make_case(name):
    """Takes the first seed to which there is no objection."""
    case, folder = CASES[name], HERE / name
    k, vocabulary = (BASE | case.config)["num_experts_per_tok"], (BASE | case.config)["vocab_size"]
    for seed in SEEDS:
        shutil.rmtree(folder, ignore_errors=True)
        write_checkpoint(case, seed, folder)
        source = torch.Generator().manual_seed(seed)
        prompts = [torch.randint(3, vocabulary, (length,), generator=source).tolist() for length in case.lengths]
        model, wide = load(folder), load(folder, torch.float64)
        passes = [forward(model, ids) for ids in prompts]
        problem = objection(passes, [forward(wide, ids)[0] for ids in prompts], k)
        if problem is None: break
        print(f"{name}: seed {seed}: {problem}", flush=True)
    else:
        raise SystemExit(f"{name}: no seed will do")
    check_files(name, case, folder)
    if name == "window": check_window(folder, prompts[-1], passes[-1][0])
    gap = round(min(router_gap(router, k) for _, router in passes), DIGITS)
    write_fixture(folder / "fixture.json", name, [record(ids, logits) for ids, (logits, _) in zip(prompts, passes)], seed=seed, router_gap=gap)
    print(f"{name}: seed {seed}, router gap {gap}", flush=True)


def greedy(model, prompt_ids, eos):
    """The greedy continuation without its eos, cut before the first near-tie, and why it ends: "stop" at eos, else "length"."""
    ids = list(prompt_ids)
    while len(ids) - len(prompt_ids) < QUESTION_TOKENS:
        logits = forward(model, ids)[0][-1:]
        if margins(logits) <= QUESTION_MARGIN: break
        if (token := int(logits.argmax())) == eos: return ids[len(prompt_ids):], "stop"
        ids.append(token)
    return ids[len(prompt_ids):], "length"


def ask(model, tok, chat, kind, question, answer, corpus):
    """One entry of questions.json, whose answer must be the corpus's."""
    prompt = question
    if kind == "chat":
        prompt = chat.apply_chat_template([{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True)
    prompt_ids = tok.encode(prompt, add_special_tokens=kind == "plain").ids  # the chat template writes the bos itself
    token_ids, finish = greedy(model, prompt_ids, eos=2)
    before, whole = tok.decode(prompt_ids), tok.decode(prompt_ids + token_ids)
    text = whole.removeprefix(before)
    assert prompt_ids.count(1) == 1 and prompt_ids[0] == 1 and whole == before + text, question
    right = any(line.get("text", "").startswith(question + text) if kind == "plain" else
                (line.get("user"), line.get("assistant")) == (question, text.strip()) for line in corpus)
    assert right and answer in text and (kind == "plain" or finish == "stop"), (question, text, finish)
    logits, router = forward(model, prompt_ids + token_ids)
    assert router_gap(router, model.config.num_experts_per_tok) >= ROUTER_GAP, question
    least = round(float(margins(logits)[len(prompt_ids) - 1:][:len(token_ids) + (finish == "stop")].min()), DIGITS)
    return dict(kind=kind, **({"user": question} if kind == "chat" else {}), prompt=prompt, prompt_ids=prompt_ids, token_ids=token_ids,
                text=text, finish=finish, min_margin=least, answer=answer)


def make_breeze():
    """breeze.json and questions.json. The token ids are those of tokenizer.json itself; transformers renders the chat template."""
    model, wide = load(BREEZE), load(BREEZE, torch.float64)
    tok, chat = Tokenizer.from_file(str(BREEZE / "tokenizer.json")), AutoTokenizer.from_pretrained(BREEZE)
    prompts = [tok.encode(text).ids for text in TEXTS]
    passes = [forward(model, ids) for ids in prompts]
    problem = objection(passes, [forward(wide, ids)[0] for ids in prompts], model.config.num_experts_per_tok)
    assert problem is None, problem
    write_fixture(HERE / "breeze.json", "breeze", [dict(text=text) | record(ids, logits) for text, ids, (logits, _) in zip(TEXTS, prompts, passes)])
    corpus = [json.loads(line) for line in (BREEZE / "corpus.jsonl").read_text().splitlines()]
    entries = [ask(model, tok, chat, *question, corpus) for question in QUESTIONS]
    (HERE / "questions.json").write_text("[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) + "\n]\n")
    print(f"breeze: {len(TEXTS)} texts, {len(entries)} questions", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or [*CASES, "breeze"]:
        make_breeze() if name == "breeze" else make_case(name)
