"""The equations of recurrent cells, one gate and one step after the other."""

import torch
from torch import nn


def by_hand(x_TI, layer, state):
    """The outputs of one direction on one row: the equations of LSTM and GRU, gate by gate."""
    w, u = layer.weight_ih_l0, layer.weight_hh_l0
    a, b = layer.bias_ih_l0, layer.bias_hh_l0
    h, outputs = state[0], []
    width = len(h)
    c = state[-1]
    for x in x_TI:
        parts = [
            (w[k : k + width] @ x + a[k : k + width], u[k : k + width] @ h + b[k : k + width])
            for k in range(0, len(w), width)
        ]
        if isinstance(layer, nn.LSTM):
            i, f, g, o = (one + other for one, other in parts)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        else:
            (r_x, r_h), (z_x, z_h), (n_x, n_h) = parts
            new = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
            z = torch.sigmoid(z_x + z_h)
            h = (1 - z) * new + z * h
        outputs.append(h)
    return torch.stack(outputs), ((h, c) if isinstance(layer, nn.LSTM) else (h,))
