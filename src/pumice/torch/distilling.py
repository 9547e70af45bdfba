"""A student learns from a teacher: the loss of `pumice.distillation` with autograd, and the loop around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pumice.distillation import TopKLogits, soft_target_loss
from pumice.torch.layers import call

IGNORED = -100  # a label that torch leaves out


class _AgainstTopK(torch.autograd.Function):
    """`soft_target_loss` against cached logits."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: TopKLogits, temperature: float, where: Tensor | None) -> Tensor:
        mask = None if where is None else where.cpu().numpy()
        logits = student.detach().cpu().double().numpy()
        loss = soft_target_loss(logits, teacher, temperature=temperature, where=mask)
        ctx.save_for_backward(torch.from_numpy(loss.gradient).to(student))
        return student.new_tensor(loss.value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.saved_tensors[0] * gradients[0], None, None, None


class DistillationLoss(nn.Module):
    """``alpha * cross-entropy + (1 - alpha) * T^2 * KL(teacher || student at temperature T)``, as
    `pumice.distillation.distillation_loss` has it.

    Parameters
    ----------
    temperature : float
        T, above 0.
    alpha : float
        Share of the hard labels, from 0 to 1.

    Examples
    --------
    >>> import torch
    >>> loss = DistillationLoss(temperature=1.0, alpha=0.5)
    >>> z = torch.zeros(1, 2, requires_grad=True)
    >>> round(loss(z, torch.tensor([[2.0, 0.0]]), torch.tensor([0])).item(), 4)
    0.5105
    """

    def __init__(self, temperature: float = 2.0, alpha: float = 0.1) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature: expected a finite number above 0, got {temperature}")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha: expected a number from 0 to 1, got {alpha}")
        self.temperature, self.alpha = temperature, alpha

    def forward(self, student: Tensor, teacher: Tensor | TopKLogits, labels: Tensor | None = None) -> Tensor:
        """Of logits (..., classes) and labels (...), where -100 leaves a row out of both parts.

        Raises ValueError for a teacher of other classes, rows or device than the student, and labels of another shape.
        """
        if labels is None:
            if self.alpha:
                raise ValueError(f"labels: expected some, since alpha is {self.alpha}, got None")
            return self._soft(student, teacher, None)
        if labels.shape != student.shape[:-1]:
            shape = tuple(student.shape[:-1])
            raise ValueError(f"labels: expected shape {shape} as the student's rows, got {tuple(labels.shape)}")
        if not (labels != IGNORED).any():
            raise ValueError(f"labels: expected at least one that counts, got {IGNORED} alone")
        hard = F.cross_entropy(student.flatten(0, -2), labels.flatten(), ignore_index=IGNORED) if self.alpha else 0.0
        soft = self._soft(student, teacher, labels != IGNORED) if self.alpha < 1 else 0.0
        return self.alpha * hard + (1 - self.alpha) * soft

    def _soft(self, student: Tensor, teacher: Tensor | TopKLogits, where: Tensor | None) -> Tensor:
        t = self.temperature
        if isinstance(teacher, TopKLogits):
            found: Tensor = _AgainstTopK.apply(student, teacher, t, where)  # type: ignore[no-untyped-call]
            return found
        if teacher.shape != student.shape:
            raise ValueError(
                f"teacher: expected logits {tuple(student.shape)} as the student, got {tuple(teacher.shape)}"
            )
        if teacher.device != student.device or not teacher.is_floating_point():
            rule = f"floating-point logits on {student.device} as the student"
            raise ValueError(f"teacher: expected {rule}, got {teacher.dtype} on {teacher.device}")
        if where is not None:
            student, teacher = student[where], teacher[where]
        wide = torch.promote_types(student.dtype, torch.float32)
        log_q, log_p = (F.log_softmax(z.flatten(0, -2) / t, dim=-1, dtype=wide) for z in (student, teacher))
        return t * t * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


class Distiller:
    """Trains a student against a teacher.

    Parameters
    ----------
    student : torch.nn.Module
        Gives logits (..., classes): a tensor, an object with ``logits`` (transformers), or a tuple that begins with
        them.
    teacher : callable, optional
        Likewise; a module is put into eval mode and never changes. None: logits are given to each `step`.
    optimizer : callable
        From parameters to an optimiser, such as ``functools.partial(torch.optim.AdamW, lr=1e-3)``.
    loss : DistillationLoss
    hidden : mapping of str to str, optional
        Names of modules of the student -> of the teacher whose outputs are to agree (mean squared error; through a
        projection that learns along where widths differ).
    hidden_weight : float
        What that counts beside `loss`.

    Examples
    --------
    >>> import functools, torch
    >>> _ = torch.manual_seed(0)
    >>> teacher, student = torch.nn.Linear(8, 4), torch.nn.Linear(8, 4)
    >>> adam = functools.partial(torch.optim.Adam, lr=0.05)
    >>> distiller = Distiller(student, teacher, adam, DistillationLoss(alpha=0.0))
    >>> history = distiller.fit([torch.randn(64, 8)], epochs=60)
    >>> history[-1] < 0.05 * history[0]
    True
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Callable[..., Any] | None,
        optimizer: Callable[..., torch.optim.Optimizer],
        loss: DistillationLoss | None = None,
        *,
        hidden: Mapping[str, str] | None = None,
        hidden_weight: float = 1.0,
    ) -> None:
        self.student, self.teacher, self.loss = student, teacher, loss or DistillationLoss()
        if isinstance(teacher, nn.Module):
            teacher.eval()
        if hidden and not isinstance(teacher, nn.Module):
            raise ValueError(f"hidden: expected a teacher that is a module, got {type(teacher).__name__}")
        self.hidden_weight = hidden_weight
        self._pairs = [(_tap(student, mine), _tap(teacher, theirs)) for mine, theirs in (hidden or {}).items()]
        self.projections = nn.ModuleDict()  # by the number of the pair; made when widths are known
        self.optimizer = optimizer(student.parameters())

    def step(self, inputs: Any, labels: Tensor | None = None, teacher_logits: Any = None) -> float:
        """One step on a batch; the value of the loss before it.

        `inputs` is what student and teacher are called with: a tensor, a tuple of arguments, or a mapping of keywords.
        """
        self.student.train()
        if teacher_logits is None:
            if self.teacher is None:
                raise ValueError("teacher_logits: expected logits, since there is no teacher, got None")
            with torch.no_grad():
                teacher_logits = _logits(call(self.teacher, inputs))
        loss = self.loss(_logits(call(self.student, inputs)), teacher_logits, labels)
        for i, (mine, theirs) in enumerate(self._pairs):
            loss = loss + self.hidden_weight * F.mse_loss(self._projected(i, mine.output, theirs.output), theirs.output)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def fit(
        self, batches: Iterable[Any], epochs: int = 1, on_step: Callable[[int, float], None] | None = None
    ) -> list[float]:
        """`step` over batches of inputs, or (inputs, labels) pairs; the losses. `on_step(number, loss)` after each."""
        history: list[float] = []
        for _ in range(epochs):
            for batch in batches:
                pair = isinstance(batch, tuple | list) and len(batch) == 2
                history.append(self.step(batch[0], batch[1]) if pair else self.step(batch))
                if on_step is not None:
                    on_step(len(history), history[-1])
        return history

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on: of the student, the projections and the optimiser."""
        return {name: getattr(self, name).state_dict() for name in ("student", "projections", "optimizer")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`: of a distiller that was made as this one."""
        for key, weight in state["projections"].items():
            self._projection(key.removesuffix(".weight"), weight.shape[1], weight.shape[0])
        for name, part in state.items():
            getattr(self, name).load_state_dict(part)

    def _projected(self, i: int, mine: Tensor, theirs: Tensor) -> Tensor:
        """The student's state in the teacher's width."""
        if mine.shape[-1] == theirs.shape[-1]:
            return mine
        projected: Tensor = self._projection(str(i), mine.shape[-1], theirs.shape[-1])(mine)
        return projected

    def _projection(self, key: str, width: int, teacher_width: int) -> nn.Module:
        if key not in self.projections:
            self.projections[key] = nn.Linear(width, teacher_width, bias=False)
            self.optimizer.add_param_group({"params": self.projections[key].parameters()})
        return self.projections[key]


class _Tap:
    """The last output of a module."""

    output: Tensor

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.output = output if isinstance(output, Tensor) else output[0]


def _tap(model: Any, name: str) -> _Tap:
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"hidden: expected a module of {type(model).__name__}, got {name!r}") from error
    tap = _Tap()
    module.register_forward_hook(tap)
    return tap


def _logits(output: Any) -> Any:
    if isinstance(output, Tensor | TopKLogits):
        return output
    return output.logits if hasattr(output, "logits") else output[0]
