"""What encoders, decoders and models promise, stated once and called by the tests."""

import dummies
import torch


def check_gradients(got, want):
    """Equal gradients; None on one side is None on the other."""
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert (g is None) == (w is None)
        if w is not None:
            torch.testing.assert_close(g, w, atol=1e-6, rtol=1e-5)


def check_neighbours(run, inputs, lengths, tolerance=1e-9):
    """P3: each row gives the same alone as in a batch with NaN in its padding.

    Args:
        run: (inputs (B, S, ...), lengths (B,), rows: list of int) -> outputs
            (B, T, ...), lengths (B,); ``rows`` says which of all rows these are.
        inputs: (B, S, ...) float.
        lengths: (B,) int64, not all equal.
        tolerance: absolute and relative.
    """
    assert len(set(lengths.tolist())) > 1
    poisoned = inputs.clone()
    for row, length in zip(poisoned, lengths, strict=True):
        row[length:] = torch.nan
    rows = list(range(len(inputs)))
    with torch.no_grad():
        together, sizes = run(poisoned, lengths, rows)
        for b in rows:
            alone, size = run(inputs[b : b + 1, : lengths[b]], lengths[b : b + 1], [b])
            assert sizes[b] == size[0]
            n = int(size[0])
            assert n > 0
            assert alone[0, :n].isfinite().all()
            torch.testing.assert_close(
                together[b, :n], alone[0, :n], atol=tolerance, rtol=tolerance
            )


def check_isolation(run, experts, expert_of_row):
    """P2: a row depends on its own expert and on no other, bit for bit.

    Args:
        run: () -> one output per row, a tensor or anything with ``==``.
        experts: per expert id, a module with its parameters.
        expert_of_row: expert id of each row; every expert serves some row.
    """
    assert set(expert_of_row) == set(range(len(experts)))
    before = run()
    for e, expert in enumerate(experts):
        with dummies.disturbed(expert):
            after = run()
        for row, mine in enumerate(expert_of_row):
            assert _identical(before[row], after[row]) == (mine != e), (row, e)
    assert all(_identical(a, b) for a, b in zip(before, run(), strict=True))


def _identical(a, b):
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def check_idle_gradients(run, experts, expert_of_row):
    """P2: a loss on the rows of one expert gives the other experts no gradient.

    Args:
        run: list of rows -> output of a batch of just these rows.
        experts, expert_of_row: as for ``check_isolation``.
    """
    for e in range(len(experts)):
        for expert in experts:
            expert.zero_grad(set_to_none=True)
        run([r for r, mine in enumerate(expert_of_row) if mine == e]).sum().backward()
        for other, expert in enumerate(experts):
            for p in expert.parameters():
                assert (p.grad is None) == (other != e)


def check_same_as_stock(stack, stock, got, want, lengths, inputs):
    """P1: outputs and gradients of a stack of copies are the dense module's.

    Args:
        stack: S-MoE module; the gradients of its experts add up to the FFN's.
        stock: the host's module with the same weights.
        got, want: outputs of both, (B, T, ...).
        lengths: (B,) int64; nothing is asked of what lies behind them.
        inputs: leaves that both were computed from.
    """
    valid = torch.arange(want.size(1)) < lengths[:, None]
    torch.testing.assert_close(got[valid], want[valid], atol=1e-5, rtol=1e-5)
    cotangent = torch.randn_like(want) * valid[:, :, None]
    want.backward(cotangent)
    want_inputs = [x.grad.clone() for x in inputs]
    for x in inputs:
        x.grad = None
    got.backward(cotangent)
    for x, grad in zip(inputs, want_inputs, strict=True):
        torch.testing.assert_close(x.grad, grad, atol=1e-5, rtol=1e-5)
    sums = {n: torch.zeros_like(p) for n, p in stock.named_parameters()}
    for name, p in stack.named_parameters():
        if p.grad is not None:
            sums[dummies.stock_name(name)] += p.grad
    for name, p in stock.named_parameters():
        torch.testing.assert_close(sums[name], p.grad, atol=1e-5, rtol=1e-5)


def check_no_guide_state(module, calls):
    """P6: calls with different guides leave nothing behind on any module.

    Args:
        module: in evaluation mode.
        calls: functions to call in turn.
    """
    calls[0]()  # the host's tables of positions grow on first use
    before = _state(module)
    for call in calls:
        call()
        after = _state(module)
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert after[key] is value or after[key] == value, key


def _state(module):
    # the host's attention keeps its last weights for plotting
    return {
        (path, name): value
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if name != "attn"
    }
