"""optimizer: Muon for matrices and convolutions (update orthogonalised by Newton-Schulz; Jordan et al. 2024), AdamW for the rest.
Gradients are summed over the workers; each worker orthogonalises its share of the matrices."""
import torch

import common

NS = (3.4445, -4.775, 2.0315)


def orthogonal(g):
    """About U V^T of g = U S V^T."""
    x = g.bfloat16() if common.BF16 else g
    tall = x.size(0) > x.size(1)
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = torch.addmm(x, torch.addmm(a, a, a, beta=NS[1], alpha=NS[2]), x, beta=NS[0])
    return (x.T if tall else x).float()


class Muon(torch.optim.Optimizer):
    """lr is in units of the update's root mean square, as AdamW's is (scaled by 0.2 sqrt(max side))."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.01):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            live = [p for p in group["params"] if p.grad is not None]
            updates = [torch.zeros_like(p) for p in live]
            for i, (p, update) in enumerate(zip(live, updates)):
                m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                if i % common.WORKERS == common.RANK:
                    g = torch.lerp(p.grad, m, group["momentum"]).flatten(1)
                    update.copy_(orthogonal(g).view_as(p)).mul_(0.2 * max(g.shape) ** 0.5)
            common.total(updates)
            for p, update in zip(live, updates):
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])


class Both:
    """One optimizer of two: Muon where `is_matrix(name, parameter)`, AdamW elsewhere."""

    def __init__(self, modules, is_matrix, lr, adam_lr):
        named = [(n, p) for m in modules for n, p in m.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        self.parts = [
            (Muon([p for n, p in named if is_matrix(n, p)], lr), lr),
            (torch.optim.AdamW([p for n, p in named if not is_matrix(n, p)], adam_lr, betas=(0.9, 0.98), weight_decay=0.0), adam_lr),
        ]

    def step(self, factor):
        """One update at `factor` times the learning rates, gradients summed over the workers, clipped to norm 1 and cleared. Returns their norm."""
        common.total([p.grad for p in self.parameters if p.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0).item()
        for optimizer, lr in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            optimizer.step()
            optimizer.zero_grad()
        return norm

    def state_dict(self):
        return [optimizer.state_dict() for optimizer, _ in self.parts]

    def load_state_dict(self, states):
        for (optimizer, _), state in zip(self.parts, states):
            optimizer.load_state_dict(state)
