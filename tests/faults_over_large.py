"""Faults of energies over large denoisers."""

from fault import Fault

FAULTS = [
    Fault(
        "an energy over a trunk that is not zero before training",
        "nn/trunk_energy.py",
        "nn.init.zeros_(self.scalar.weight)",
        "nn.init.ones_(self.scalar.weight)",
        "tests/nn/test_trunk_energy.py::test_it_is_zero_before_training_whatever_the_texts",
    ),
    Fault(
        "gradients that reach the weights under adapters, which are the denoiser's",
        "nn/adapters.py",
        "    network.requires_grad_(False)\n    places",
        "    network.requires_grad_(True)\n    places",
        "tests/nn/test_trunk_energy.py::test_gradients_reach_what_is_trained_and_the_denoiser_never_moves",
    ),
    Fault(
        "a trunk that is trained in the denoiser's memory",
        "nn/trunk_energy.py",
        "value.detach().float().clone()",
        "value.detach().float()",
        "tests/nn/test_trunk_energy.py::test_what_is_not_trained_is_the_denoisers_own_memory_and_the_rest_is_not",
    ),
    Fault(
        "a frozen trunk held twice",
        "nn/trunk_energy.py",
        "nn.Parameter(each.detach(), False)",
        "nn.Parameter(each.detach().clone(), False)",
        "tests/nn/test_trunk_energy.py::test_what_is_not_trained_is_the_denoisers_own_memory_and_the_rest_is_not",
    ),
    Fault(
        "an energy over a trunk that does not know which tokens are new",
        "nn/trunk_energy.py",
        "self.new((x_t != x_0).long())",
        "self.new((x_0 != x_0).long())",
        "tests/nn/test_trunk_energy.py::test_it_reads_the_candidate_and_which_of_its_tokens_are_new",
    ),
    Fault(
        "a trunk that drops out",
        "nn/trunk_energy.py",
        "        self.trunk.eval()\n",
        "",
        "tests/nn/test_trunk_energy.py::test_the_trunk_stays_in_eval_mode_and_the_head_alone_drops_out",
    ),
    Fault(
        "an energy over a trunk loaded without its weights",
        "weights/trunk_energies.py",
        "value.copy_(held[name])",
        "value.copy_(value)",
        "tests/weights/test_trunk_energies.py::test_what_was_saved_gives_the_same_energies_bit_for_bit",
    ),
    Fault(
        "frozen weights saved beside a head",
        "weights/trunk_energies.py",
        " if name in network.trained}",
        "}",
        "tests/weights/test_trunk_energies.py::test_only_what_was_trained_is_kept_and_the_rest_is_held_once",
    ),
    Fault(
        "frozen weights in the state of a training",
        "training/sharding.py",
        "        return [name for name, each in self.network.named_parameters() if each.requires_grad]",
        "        return [name for name, each in self.network.named_parameters()]",
        "tests/weights/test_trunk_energies.py::test_only_what_was_trained_is_kept_and_the_rest_is_held_once",
    ),
    Fault(
        "an energy loaded over any denoiser",
        "weights/trunk_energies.py",
        " or description.get(OVER) != weights:",
        ":",
        "tests/weights/test_trunk_energies.py::test_another_denoiser_is_refused_by_the_hash_of_its_weights",
    ),
    Fault(
        "the weights of an energy over a trunk are not compared with their hash",
        "weights/trunk_energies.py",
        "    held = tensors.read_safetensors(file)\n    formats.verify(folder, description)\n",
        "    held = tensors.read_safetensors(file)\n",
        "tests/weights/test_trunk_energies.py::test_damage_is_named",
    ),
    Fault(
        "tensors in the memory of others counted twice in a forecast",
        "training/forecast.py",
        "others.pop(_storage(parameter).data_ptr(), None)",
        "others.pop(id(parameter), None)",
        "tests/training/test_trunk_runs.py::test_the_forecast_counts_frozen_tensors_once_and_states_of_what_is_trained",
    ),
    Fault(
        "a run goes on over a trunk that is trained otherwise",
        "training/energy.py",
        "for key, plain in _OF_OURS.items() if settings[key] != plain}",
        "for key, plain in _OF_OURS.items() if False}",
        "tests/training/test_trunk_runs.py::test_a_run_does_not_go_on_over_another_denoiser_or_in_another_way",
    ),
]
