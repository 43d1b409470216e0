"""Mistakes that people make on the command line, and the sentence that each of them gets."""

COMMANDS: dict[str, str] = {
    "edlm runn edlm_nce": (
        "command 'runn' is not one of run, ls, cp, validate, convert, doctor, harness; did you mean `edlm run`?"
    ),
    "edlm edlm_nce": (
        "command 'edlm_nce' is not one of run, ls, cp, validate, convert, doctor, harness; "
        "did you mean `edlm run edlm_nce`?"
    ),
    "edlm run generate mine.yaml": "'mine.yaml' must be key=value; a config is given as --config mine.yaml",
    "edlm run edlm_ncee": (
        "recipe 'edlm_ncee' is not one of adapt, benchmark, distill, edlm_joint, edlm_nce, evaluate, "
        "frontier, generate, likelihoods, oracle, pretrain_ar, pretrain_denoiser, speedrun, nor a path that "
        "ends in .py; did you mean 'edlm_nce'?"
    ),
    "edlm run generate/tiny": ("recipe 'generate/tiny' is a recipe and its config: edlm run generate --config tiny"),
    "edlm run nowhere.py": "recipe nowhere.py: no such file",
    "edlm run generate --config huge": (
        "config 'huge' is no file, and recipe generate has dream_qwen_energy, english27, english27_ar, "
        "llada, owt, owt_edlm_ar, owt_mdlm, text8, tiny"
    ),
    "edlm run generate --config nowhere.yaml": (
        "config 'nowhere.yaml' is no file, and recipe generate has dream_qwen_energy, english27, "
        "english27_ar, llada, owt, owt_edlm_ar, owt_mdlm, text8, tiny"
    ),
    "edlm run generate --config poem.yaml": (
        "poem.yaml: the key 'recipe' is missing; it names the recipe the config is for"
    ),
    "edlm run generate --config evaluate.yaml": (
        "evaluate.yaml is a config of evaluate, not of generate: edlm run evaluate --config evaluate.yaml"
    ),
    "edlm run generate num_sample=3": "num_sample: unknown key; did you mean 'num_samples'?",
    "edlm run generate --num_samples 3": "--num_samples is no option; a setting is given as num_samples=3",
    "edlm run generate --num_samples=3": "--num_samples=3 is no option; a setting is given as num_samples=3",
    "edlm run generate --overwrite": "--overwrite is no option; a setting is given as overwrite=true",
    "edlm run generate num_samples 3": "'num_samples' must be key=value; a setting is given as num_samples=3",
    "edlm run generate num_samples = 3": "'num_samples' must be key=value; a setting is given as num_samples=3",
    "edlm run generate num_samples": "'num_samples' must be key=value",
    "edlm run generate num_samples=": "num_samples = None must be a whole number of at least 1",
    "edlm run generate num_samples=three": "num_samples = 'three' must be a whole number of at least 1",
    "edlm run generate num_samples=2.5": "num_samples = 2.5 must be a whole number of at least 1",
    "edlm run generate num_samples=0": "num_samples = 0 must be a whole number of at least 1",
    "edlm run generate num_samples=true": "num_samples = True must be a whole number of at least 1",
    "edlm run generate seed=-1": "seed = -1 must be a whole number of at least 0 and at most 9223372036854775807",
    "edlm run generate device=gpu": "device = 'gpu' must be one of auto, cpu, cuda",
    "edlm run generate temperature=0": "temperature = 0 must be a number above 0",
    "edlm run generate nucleus=2": "nucleus = 2 must be a number above 0 and at most 1",
    "edlm run generate window=[1,0]": "window = [1, 0] must be two times [low, high] with 0 <= low <= high <= 1",
    "edlm run generate window=0.5": "window = 0.5 must be two times [low, high] with 0 <= low <= high <= 1",
    "edlm run generate selection=srr": "selection = 'srr' must be one of sir, imh, greedy, speculative",
    "edlm run generate sampler.plan.name=gird": (
        "sampler.plan.name = 'gird' must be one of in_blocks, entropy_bound, confidence, ranked, grid, "
        "times, tokens_per_pass, left_to_right"
    ),
    "edlm run generate denoiser=null": "denoiser and ar are both null: name one of them, or both",
    "edlm run generate denoiser=nowhere": (
        "denoiser = nowhere: no checkpoint there (expected network.json, or checkpoints/last.json of a run); "
        "`edlm run pretrain_denoiser` trains one"
    ),
    "edlm run generate denoiser=trained energy=nowhere": (
        "energy = nowhere: no checkpoint there (expected network.json, or checkpoints/last.json of a run); "
        "`edlm run edlm_nce` trains one"
    ),
    "edlm run generate denoiser=trained energy=null prompt=ROMEO": (
        "character 'R' at offset 0 is not in the vocabulary, only ' ab'"
    ),
    'edlm run generate denoiser=trained energy=null prompt="ab ab ab ab"': (
        "prompt of shape (8, 11) does not fit: it must be (l,) or (8, l), l at most 8"
    ),
    "edlm run generate denoiser=trained energy=null length=20": (
        "length = 20 is more than the denoiser's 8: give a stride below 8, by which its window moves on"
    ),
    "edlm run generate denoiser=trained energy=null length=20 stride=8": (
        "stride = 8 must lie in 1..7: a window has 8 tokens"
    ),
    "edlm run generate denoiser=trained energy=null num_steps=null tokens_per_pass=0": (
        "tokens_per_pass = 0 must be a whole number of at least 1"
    ),
    "edlm run generate denoiser=trained energy=null num_steps=4 tokens_per_pass=2": (
        "tokens_per_pass = 2 needs num_steps = null, not 4"
    ),
    "edlm run generate denoiser=trained energy=trained": (
        "trained holds a network of class Transformer, not EnergyNetwork"
    ),
    "edlm run generate denoiser=trained energy=trained ar=trained": (
        "energy = 'trained' and ar = 'trained' exclude each other: set one to null"
    ),
    "edlm run pretrain_denoiser hidden_size=64": "hidden_size: unknown key; did you mean 'network.hidden_size'?",
    "edlm run pretrain_denoiser network.hiden_size=64": (
        "network.hiden_size: unknown key; did you mean 'hidden_size'?"
    ),
    "edlm run pretrain_denoiser network.hidden_size=wide": "network.hidden_size = 'wide' must be of type int",
    "edlm run pretrain_denoiser network=edlm.networks.Transformr": (
        "network._component_ = 'edlm.networks.Transformr' must be the dotted path of something that can "
        "be imported and called (module 'edlm.nn.networks' has no attribute 'Transformr')"
    ),
    "edlm run pretrain_denoiser steps=[3": (
        "steps = '[3' must be YAML, with a space after each colon (while parsing a flow sequence in "
        "\"<unicode string>\", line 1, column 1 did not find expected ',' or ']' in \"<unicode string>\", "
        "line 2, column 1)"
    ),
    "edlm run pretrain_denoiser steps={a:3}": "steps = {'a:3': None} must be a whole number of at least 1",
    "edlm run pretrain_denoiser log_to=tensorboard": "log_to = 'tensorboard' must be a list",
    "edlm run pretrain_denoiser ~sed": "~sed: the config has no such key to leave out",
    "edlm run pretrain_denoiser ~seed": "seed: missing from the config",
    "edlm run pretrain_denoiser optimizer.lr=fast": "optimizer.lr = 'fast' must be of type float",
    "edlm run pretrain_denoiser optimizer.ltr=1e-3": "optimizer.ltr: unknown key; did you mean 'lr'?",
    "edlm run pretrain_denoiser schedule.eps=2": "schedule: schedule: log_linear: eps = 2 must lie in [0, 1)",
    "edlm run pretrain_denoiser corpus=edlm.corpora.text_files": (
        "corpus.path: missing from the config (edlm.corpora.text_files needs it)"
    ),
    "edlm run pretrain_denoiser corpus=edlm.corpora.text_files corpus.path=nowhere.txt": (
        "edlm.corpora.text_files: nowhere.txt: no such file"
    ),
    "edlm run pretrain_denoiser corpus=edlm.corpora.text_files corpus.path=poem.yaml corpus.pth=x": (
        "corpus.pth: unknown key; did you mean 'path'?"
    ),
    "edlm run pretrain_denoiser resume=maybe": "resume = 'maybe' must be true or false, or without_log",
    "edlm run pretrain_denoiser decay=linear": "decay = 'linear' must be one of constant, cosine",
    "edlm run pretrain_denoiser batch_size=8 accumulate=9": "batch_size = 8 must be at least accumulate = 9",
    "edlm run pretrain_denoiser network.num_heads=0": ("edlm.networks.Transformer: num_heads = 0 must be at least 1"),
    "edlm run edlm_nce pretrain.hidden_size=64": (
        "pretrain.hidden_size: unknown key; did you mean 'pretrain.network.hidden_size'?"
    ),
    "edlm run edlm_nce denoiser=nowhere pretrain=null": (
        "denoiser = nowhere: no checkpoint there (expected network.json, or checkpoints/last.json of a run); "
        "`edlm run pretrain_denoiser` trains one"
    ),
    "edlm run edlm_nce scope=drafts": "scope = 'drafts' must be one of draft, transition",
    "edlm run edlm_nce transition_steps=[4,2]": (
        "transition_steps = [4, 2] must be two whole numbers [fewest, most] with 1 <= fewest <= most"
    ),
    "edlm run evaluate samples=nowhere.jsonl": (
        "denoiser = runs/tiny/denoiser: no checkpoint there (expected network.json, or "
        "checkpoints/last.json of a run); `edlm run pretrain_denoiser` trains one"
    ),
    "edlm run --nproc_per_node 0 edlm_nce": (
        "--nproc_per_node 0 must be a whole number of at least 1, or auto, cpu, gpu"
    ),
    "edlm cp generate/huge": (
        "config 'huge' is no file, and recipe generate has dream_qwen_energy, english27, english27_ar, "
        "llada, owt, owt_edlm_ar, owt_mdlm, text8, tiny"
    ),
    "edlm cp generate evaluate.yaml": "evaluate.yaml exists already; remove it or choose another path",
    "edlm validate nothing": "config 'nothing' is no file, and no recipe/config that `edlm ls` lists",
    "edlm validate generate num_sample=3": "num_sample: unknown key; did you mean 'num_samples'?",
    "edlm validate generat --config tiny": (
        "recipe 'generat' is not one of adapt, benchmark, distill, edlm_joint, edlm_nce, evaluate, frontier, generate, "
        "likelihoods, oracle, pretrain_ar, pretrain_denoiser, speedrun, nor a path that ends in .py; "
        "did you mean 'generate'?"
    ),
    "edlm convert nowhere out": "nowhere: no such file or folder",
}
