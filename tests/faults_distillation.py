"""Faults of distillation: its targets, its divergences and its rounds."""

from fault import Fault

_TESTS = "tests/objectives/test_distillation.py"
_TARGETS = f"{_TESTS}::test_targets_are_what_a_stepping_teacher_says_of_each_mask"

FAULTS = [
    Fault(
        "targets of the first step alone",
        "objectives/distillation.py",
        "target = target.index_copy(0, left, hidden)",
        "target = target.index_copy(0, left[:0], hidden[:0])",
        _TARGETS,
    ),
    Fault(
        "targets of the last step alone",
        "objectives/distillation.py",
        "left, t = left[~now], after",
        "left, t = left, after",
        _TARGETS,
    ),
    Fault(
        "a teacher that sees none of what it wrote",
        "objectives/distillation.py",
        "x = x.index_copy(0, positions[left[now]], drawn)",
        "x = x.index_copy(0, positions[left[now]][:0], drawn[:0])",
        _TARGETS,
    ),
    Fault(
        "a teacher that is told the same time in every step",
        "objectives/distillation.py",
        "hidden = self._states(x.view_as(x_t), t, positions[left])",
        "hidden = self._states(x.view_as(x_t), t + self.length, positions[left])",
        _TARGETS,
    ),
    Fault(
        "a teacher whose last step leaves masks",
        "objectives/distillation.py",
        "return torch.where(s > 0.0, (alpha_s - alpha_t) / (1.0 - alpha_t), 1.0)",
        "return (alpha_s - alpha_t) / (1.0 - alpha_t + 0.5 * (s == 0.0))",
        _TARGETS,
    ),
    Fault(
        "steps that draw the same tokens",
        "objectives/distillation.py",
        "words[left[now], number : number + 1]",
        "words[left[now], :1]",
        _TARGETS,
    ),
    Fault(
        "Kullback and Leibler turned round",
        "objectives/distillation.py",
        '"kl": _reverse_kl,',
        '"kl": _forward_kl,',
        f"{_TESTS}::test_divergences_are_what_they_are_called",
    ),
    Fault(
        "a divergence over the mask's own column too",
        "objectives/distillation.py",
        "torch.cat([logits[:, :mask_id], logits[:, mask_id + 1 :]], dim=1)",
        "logits.masked_fill(logits == -torch.inf, 0.0)",
        f"{_TESTS}::test_the_loss_is_the_sum_over_the_masks_of_a_text_and_padding_is_none",
    ),
    Fault(
        "a teacher that drops out",
        "objectives/distillation.py",
        '"teach": Frozen(stage("x_t, t, positions, seed, row, step -> target", teach)),',
        '"teach": stage("x_t, t, positions, seed, row, step -> target", teach),',
        f"{_TESTS}::test_the_teacher_is_frozen_and_never_in_training",
    ),
    Fault(
        "padding distilled",
        "objectives/distillation.py",
        "corruption(student.mask_id, schedule, time_low, pad_id)",
        "corruption(student.mask_id, schedule, time_low)",
        f"{_TESTS}::test_the_loss_is_the_sum_over_the_masks_of_a_text_and_padding_is_none",
    ),
    Fault(
        "steps that grow shorter from round to round",
        "training/distillation.py",
        'self.settings["num_steps"] / self.settings["at_once"] ** number',
        'self.settings["num_steps"] * self.settings["at_once"] ** number',
        "tests/recipes/test_distill.py::test_a_round_takes_steps_that_are_as_many_times_longer_as_are_done_at_once",
    ),
    Fault(
        "every round with the first teacher",
        "recipes/distill.py",
        "self.teacher = self.run.average.eval().requires_grad_(False)",
        "self.run.average.eval().requires_grad_(False)",
        "tests/recipes/test_distill.py::test_the_student_of_a_round_is_the_teacher_of_the_next",
    ),
    Fault(
        "times of a distillation whose lower end no setting moves",
        "training/distillation.py",
        'settings["time_low"],',
        "1e-3,",
        "tests/recipes/test_distill.py::test_a_round_is_trained_and_measured_by_what_the_settings_say",
    ),
    Fault(
        "padding counted in the held-out loss of a student",
        "training/distillation.py",
        "[contracts.LOSS] / counted.sum(1)",
        "[contracts.LOSS] / x_0.shape[1]",
        "tests/recipes/test_distill.py::test_a_round_is_trained_and_measured_by_what_the_settings_say",
    ),
]
