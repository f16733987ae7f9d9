"""A formula and a picture for each choice of the seams, the picture drawn by the choice's own class."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

from attnlab.config.seams import load
from attnlab.layers import (
    ALiBi,
    Eager,
    GatedFeedForward,
    Mixer,
    MixtureOfExperts,
    NoFeedForward,
    PositionEncoding,
    build_scope,
)
from attnlab.layers.attention import DotProductAttention
from attnlab.models import GPT
from attnlab.parts import build_part

Node, Build = Mapping[str, object], Callable[..., Any]
LENGTH, WIDTH, HEADS, SIDE = 32, 64, 4, 9
# In matplotlib's mathtext; `f` is a sublayer, `t` a query's position, `s` a key's, `d` the model's width.
FORMULAS = {
    "position": {
        "sinusoidal": r"$x_t + p_t,\quad p_{t,2i}=\sin(t\,10000^{-2i/d}),\ p_{t,2i+1}=\cos(t\,10000^{-2i/d})$",
        "learned": r"$x_t + P_t,\quad P$ a learned table of max_length rows",
        "rotary": r"$q_t^\top k_s \to (R_t q)^\top (R_s k) = q^\top R_{s-t}\,k,\quad$ angles $t\,10000^{-2i/d_{head}}$",
        "rotary_linear": r"rotary with angles $(t/factor)\,10000^{-2i/d_{head}}$",
        "rotary_ntk": r"rotary with base $10000 \cdot factor^{\,d_{head}/(d_{head}-2)}$",
        "rotary_yarn": r"slow pairs $\theta_i/factor$, fast ones $\theta_i$; $q, k$ times $0.1\,\ln factor + 1$",
        "rotary_llama3": r"wavelengths above $L/low$: $\theta_i/factor$; below $L/high$: $\theta_i$; between, blended",
        "alibi": r"$q_t^\top k_s/\sqrt{d_{head}} - m_h\,|t-s|,\quad m_h = 2^{-8h/H}$",
        "xpos": r"$(\zeta^{t/B} R_t q)^\top (\zeta^{-s/B} R_s k),\quad \zeta_i = (2i/d_{head}+\gamma)/(1+\gamma)$",
        "p_rotary": r"rotary in the share $p$ of the pairs, those of the highest frequencies; else angle 0",
        "fire": r"$q_t^\top k_s/\sqrt{d_{head}} + f_h(\log(c(t-s)+1)\,/\,\log(c\max(L,t)+1))$, $f, c, L$ learned",
        "sandwich_positions": r"$q_t^\top k_s/\sqrt{d_{head}} + \frac{H}{8h}\sum_i \cos((t-s)\,10000^{-2i/128})$",
        "relative_bias": r"$q_t^\top k_s + b_{h,\,bucket(t-s)}$, $b$ learned, buckets logarithmic",
        "cope": r"$q_t^\top (k_s + e[p_{ts}])/\sqrt{d_{head}},\quad p_{ts}=\sum_{j=s}^{t}\sigma(score_{tj})$",
        "none": r"$q_t^\top k_s/\sqrt{d_{head}}$: no position anywhere",
        "sinusoidal_2d": r"sinusoids of the row on $d/2$ dimensions, of the column on $d/2$",
        "learned_2d": r"$x + (R_{row}, C_{column})$, learned half-width tables",
        "axial_rotary": r"half of the pairs turn by the row, half by the column",
    },
    "residual": {
        "post_ln": r"$norm(x + f(x))$",
        "pre_ln": r"$x + f(norm(x))$, and a norm after the last layer",
        "sandwich": r"$x + norm(f(norm(x)))$, and a norm after the last layer",
        "deepnorm": r"$norm(\alpha x + f(x)),\quad \alpha=(2N)^{1/4}$, first weights times $\beta=(8N)^{-1/4}$",
        "output_norm": r"$x + norm(f(x))$, and a norm after the last layer",
        "layer_scale": r"$x + s \odot f(norm(x))$, $s$ learned from 0.1, and a norm after the last layer",
        "layer_norm_scaling": r"$x + f(norm(x)/\sqrt{l})$ in layer $l = 1, 2, \ldots$, and a norm after the last layer",
        "embedding_residual": r"$y + f(norm(y)),\quad y = a\,x + b\,x_0$, $a, b$ learned in each layer from 1 and 0",
        "static_hyper_connections": r"$A_r^\top H + B^\top f(norm(A_m^\top H))$, $H$ of $N$ streams, $A, B$ learned",
        "hyper_connections": r"$A_r^\top H + B^\top f(norm(A_m^\top H)),\quad A, B$ learned $+\ s\,\tanh(norm(H)\,W)$",
        "rezero": r"$x + \alpha f(x)$, $\alpha$ learned from 0",
        "parallel": r"$x + attention(norm(x)) + feed\_forward(norm(x))$",
    },
    "norm": {
        "layer_norm": r"$(x - mean(x))\,/\,\sqrt{var(x)+\epsilon}\cdot g + b$",
        "rms_norm": r"$x\,/\,\sqrt{mean(x^2)+\epsilon}\cdot g$",
        "none": r"$x$",
        "dynamic_tanh": r"$g \cdot \tanh(\alpha x) + b$",
    },
    "attention": {
        "multi_head": r"$softmax(Q_h K_h^\top/\sqrt{d_{head}})\,V_h$, keys and values for each head",
        "grouped_query": r"$softmax(Q_h K_{g(h)}^\top/\sqrt{d_{head}})\,V_{g(h)}$, shared within groups",
        "multi_query": r"$softmax(Q_h K^\top/\sqrt{d_{head}})\,V$, one for all heads",
        "softmax_plus_one": r"$e^{s_{tj}}\,/\,(1 + \sum_i e^{s_{ti}})$",
        "sink_logit": r"$e^{s_{tj}}\,/\,(e^{b_h} + \sum_i e^{s_{ti}})$, $b_h$ learned from 0",
        "sigmoid": r"$\sigma(s_{tj} - \ln n)$, $n$ the longest sequence",
        "forgetting": r"$softmax(s_{tj} + \sum_{i=j+1}^{t} \ln f_i),\quad f_i = \sigma(w_h^\top x_i + b_h)$",
        "differential": r"$(softmax(Q_1 K_1^\top/c) - \lambda\,softmax(Q_2 K_2^\top/c))\,V,\ c = \sqrt{d_{head}/2}$",
        "talking_heads": r"$\sum_i P_{ih}\,softmax(\sum_g R_{gi}\,Q_g K_g^\top/\sqrt{d_{head}})\,V_h$",
        "head_gate": r"$\sigma(w_h^\top x)\,softmax(Q_h K_h^\top/\sqrt{d_{head}})\,V_h$",
        "value_residual": r"$softmax(Q_h K_h^\top/\sqrt{d_{head}})\,(a\,V_{1h} + b\,V_h)$, $V_1$ of the first layer",
        "shared_key_value": r"$softmax(Q_h K_h^\top/\sqrt{d_{head}})\,V_h$, two layers with the same $K$ and $V$",
        "latent": r"$c = norm(W_c x),\ k_h = (W_h c,\ R_s W_r x),\ v_h = U_h c$; kept: $c$, $R_s W_r x$",
        "multi_dconv_head": r"multi_head with $\sum_i w_i\,q_{t-i}$ for $q_t$, likewise $k$ and $v$",
        "linear": r"$\phi(q_t)^\top \sum_s \phi(k_s)\,v_s^\top\,/\,\phi(q_t)^\top \sum_s \phi(k_s),\ \phi = elu + 1$",
        "retention": r"$S_t = \gamma_h\,S_{t-1} + k_t v_t^\top,\quad o_t = S_t^\top q_t,\quad \gamma_h = 1 - 2^{-5-h}$",
        "gated_linear": r"$S_t = diag(\alpha_t)\,S_{t-1} + k_t v_t^\top,\ \alpha_t = \sigma(W_2 W_1 x_t + b)^{1/16}$",
        "delta_net": r"$S_t = S_{t-1} + \beta_t\,k_t\,(v_t - S_{t-1}^\top k_t)^\top,\quad o_t = S_t^\top q_t$",
        "gated_delta_net": r"$S_t = \alpha_t S_{t-1} + \beta_t\,k_t\,(v_t - \alpha_t S_{t-1}^\top k_t)^\top$",
        "lstm": r"$c_t = f \odot c_{t-1} + i \odot \tanh(W x_t + U h_{t-1} + b),\quad h_t = o \odot \tanh(c_t)$",
        "gru": r"$h_t = (1-z) \odot n + z \odot h_{t-1},\quad n = \tanh(W x_t + b + r \odot (U h_{t-1} + c))$",
    },
    "feed_forward": {
        "relu": r"$W_2 \max(0, W_1 x)$",
        "gelu": r"$W_2\,(h\,\Phi(h)),\quad h = W_1 x$",
        "quick_gelu": r"$W_2\,(h\,\sigma(1.702\,h))$",
        "none": r"no feed-forward layer: attention alone",
        "silu": r"$W_2\,(h\,\sigma(h))$",
        "squared_relu": r"$W_2 \max(0, W_1 x)^2$",
        "glu": r"$W_2\,(\sigma(W_g x) \odot W_1 x)$",
        "geglu": r"$W_2\,(GELU(W_g x) \odot W_1 x)$",
        "swiglu": r"$W_2\,(SiLU(W_g x) \odot W_1 x)$",
        "reglu": r"$W_2\,(\max(0, W_g x) \odot W_1 x)$",
        "mixture_of_experts": r"$\sum_e w_e\,f_e(x)$, $w$ the largest $k$ of $softmax(W_r x)$ over their sum",
    },
    "init": {
        "xavier": r"uniform, $\sigma = \sqrt{2/(fan_{in}+fan_{out})}$; embeddings $d^{-1/2}$",
        "normal_002": r"normal, $\sigma = 0.02$",
        "gpt2": r"normal, $\sigma = 0.02$; what writes to the stream $0.02/\sqrt{2N}$",
        "small": r"normal, $\sigma = \sqrt{2/(5d)}$",
        "fan_in": r"normal, $\sigma = \sqrt{1/fan_{in}}$, into a gate $\sqrt{4/fan_{in}}$; embeddings 0.1",
        "pytorch": r"uniform within $\pm\sqrt{1/fan_{in}}$; embeddings normal, $\sigma = 1$",
        "mup": r"hidden $\sigma/\sqrt{r}$, $\eta/r$; scores $\sqrt{base}\,q^\top k/d_{head}$; logits $/r$; $r=d/base$",
        "complete_p": r"muP, and $x + m^{-\alpha} f(x)$, in layers $\eta\,m^{\alpha-1}$; $m = L/L_{base}$",
    },
    "optimizer": {
        "adamw": r"$w \leftarrow w - \eta\,\hat m/(\sqrt{\hat v}+\epsilon) - \eta\lambda w$",
        "adam": r"$g \leftarrow g + \lambda w;\quad w \leftarrow w - \eta\,\hat m/(\sqrt{\hat v}+\epsilon)$",
        "adafactor": r"$\hat v \approx r c^\top / \sum r$, a row and a column; steps relative to $rms(w)$",
        "lion": r"$w \leftarrow w - \eta\,(sign(\beta_1 m + (1-\beta_1) g) + \lambda w)$",
        "muon": r"$w \leftarrow w - \eta\,0.2\sqrt{\max(n,m)}\,orthogonal(\mu m + g) - \eta\lambda w$",
        "cautious_adamw": r"$w \leftarrow w - \eta\,c\,[u g > 0]\,u - \eta\lambda w,\quad u$ AdamW's, $c = d/(kept+1)$",
        "cautious_lion": r"$w \leftarrow w - \eta\,c\,[u g > 0]\,u - \eta\lambda w,\quad u$ Lion's, $c = d/(kept+1)$",
        "soap": r"$w \leftarrow w - \eta\,Q_L Adam(Q_L^\top G\,Q_R) Q_R^\top,\quad Q$: eigenbases",
        "shampoo": r"$w \leftarrow w - \eta\,(\sum GG^\top)^{-1/4}\,G\,(\sum G^\top G)^{-1/4}$",
        "normuon": r"$O = orthogonal(\mu m + g);\quad w \leftarrow w - 0.2\,\eta\,unit(O/\sqrt{\overline{rows(O^2)}})$",
        "ademamix": r"$w \leftarrow w - \eta\,(\hat m_1 + \alpha m_2)/(\sqrt{\hat v}+\epsilon) - \eta\lambda w$",
        "mars": r"$c = g_s + \gamma\frac{\beta_1}{1-\beta_1}(g_s - g_{s-1})$, clipped to norm 1, then AdamW on $c$",
        "torch": r"the update rule of the class of torch.optim that $name$ names",
        "pytorch_optimizer": r"the update rule of the class of pytorch_optimizer that $name$ names",
        "schedule_free": r"$y = (1-\beta)z + \beta x,\quad z \leftarrow z - \eta g(y),\quad x$ the mean of $z$",
    },
    "schedule": {
        "constant": r"$\eta$ after the warm-up",
        "linear": r"$\eta\,(1 - progress)$",
        "cosine": r"$\eta\,(1+\cos(\pi\,progress))/2$",
        "inverse_sqrt": r"$\eta\,\sqrt{warmup/s}$",
        "noam": r"$factor \cdot d^{-1/2} \min(s^{-1/2},\ s\,warmup^{-3/2})$",
        "wsd": r"$\eta$, then $\eta\,(1-\sqrt{share\ of\ the\ decay})$ or another cool-down",
        "power": r"$\eta \min(1, (s/flat)^{-0.51})$, then a cool-down",
    },
    "averaging": {
        "none": r"$\bar w_s = w_s$",
        "ema": r"$\bar w_s = \beta\,\bar w_{s-1} + (1-\beta)\,w_s$",
        "last_checkpoints": r"$\bar w = mean(w$ at the last $n$ validations$)$",
    },
    "batch_ramp": {
        "none": r"$N_s = N$",
        "linear": r"$N_s = \lfloor N\,(start + (1-start)\,s/S) \rfloor$ for $s < S$",
        "linear_in_tokens": r"$N_s = \lfloor N\,start^{\,1-s/S} \rfloor$ for $s < S$",
        "doubling": r"$N_s = \lfloor N\,start^{\,1-k/stages} \rfloor$ in stage $k$, from 0",
        "staged": r"$N_s = \lfloor N\,share_k \rfloor$ in stage $k$, then $N$",
    },
    "length_ramp": {
        "none": r"$L_s = L$",
        "linear": r"$L_s = 8\,\lfloor L\,(start + (1-start)\,s/S)/8 \rfloor$ for $s < S$",
        "staged": r"$L_s = \lfloor L\,share_k \rfloor$ in stage $k$, then $L$",
    },
}


def picture(group: str, name: str, node: Node) -> bytes | None:
    """The picture of a choice, whose file is `node`, as SVG; None where its group is no seam. Raises: ValueError for a
    choice of a seam that has no formula here."""
    if group not in FORMULAS:
        return None
    if name not in FORMULAS[group]:
        raise ValueError(f"{group}={name} has no formula in .ci/docs_pictures.py")
    draw = DRAWN.get(group)
    figure = Figure(figsize=(6.4, 2.7 if draw else 0.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    torch.manual_seed(0)
    if draw is None:
        axes.axis("off")
    else:
        draw(axes, name, partial(_build, group, node))
    figure.suptitle(FORMULAS[group][name], fontsize=11)
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _build(group: str, node: Node, **dims: object) -> Any:
    """The choice with its file's own fields and these widths."""
    made = load(group, node)
    own = {key: value for key, value in node.items() if not key.startswith("_")}
    fields = {key: value for key, value in own.items() if not isinstance(value, str | dict)}
    return build_part(partial(made, **fields), **dims) if node.get("_partial_") else made(**fields)


@torch.no_grad()
def _position(axes: Axes, name: str, build: Build) -> None:
    """Its share in the score of each query and key, first head; of an image, those of its middle patch."""
    is_image = name in ("sinusoidal_2d", "learned_2d", "axial_rotary")
    count = SIDE * SIDE if is_image else LENGTH
    dims: dict[str, object] = {"d_model": WIDTH, "num_heads": HEADS, "d_head": WIDTH // HEADS, "max_length": count}
    encoding = build(**dims, causal=True, grid=(SIDE, SIDE))
    if name in ("relative_bias", "cope"):
        encoding.table.weight.normal_()
    at_1T = torch.arange(count)[None]
    embedded_TD = encoding.embed(torch.zeros(1, count, WIDTH), at_1T)[0]
    ones_11TK = torch.ones(1, 1, count, WIDTH // HEADS)
    q_TK, k_SK = (turn(ones_11TK, at_1T)[0, 0] for turn in (encoding.rotate, encoding.rotate_keys))
    scores_TS = embedded_TD @ embedded_TD.T + q_TK @ k_SK.T - WIDTH // HEADS
    if (bias_1HTS := encoding.bias(at_1T, at_1T)) is not None:
        scores_TS = scores_TS + bias_1HTS[0, 0]
    if name == "cope":  # of random queries and keys
        q_TK, k_TK = torch.randn(2, 1, 1, count, WIDTH // HEADS)
        is_before_TT = torch.ones(count, count, dtype=torch.bool).tril()
        scores_TS = encoding.context_bias(q_TK, q_TK @ k_TK.transpose(2, 3), is_before_TT)[0, 0]
    shown = (
        scores_TS[count // 2].reshape(SIDE, SIDE)
        if is_image
        else scores_TS.masked_fill(torch.ones(count, count, dtype=torch.bool).triu(1), float("nan"))
    )
    image = axes.imshow(shown.numpy(), cmap="viridis")
    labels = (
        ("column", "row", "what positions add to the\nscore of the middle patch")
        if is_image
        else ("key", "query", "what positions add to a score")
    )
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.figure.colorbar(image, ax=axes, label=labels[2])  # type: ignore[union-attr]


def _residual(axes: Axes, name: str, build: Build) -> None:
    """The way of the stream (bold) through a layer."""
    branch = {"post_ln": ["f"], "deepnorm": ["f"], "pre_ln": ["norm", "f"], "sandwich": ["norm", "f", "norm"],
              "rezero": ["f", r"$\alpha$"], "parallel": ["norm", "attention\nfeed-forward"],
              "output_norm": ["f", "norm"], "layer_scale": ["norm", "f", "$s$"],
              "layer_norm_scaling": ["norm", r"$1/\sqrt{l}$", "f"],
              "embedding_residual": ["norm", "f"], "static_hyper_connections": ["$A_m$", "norm", "f", "$B$"],
              "hyper_connections": ["$A_m$", "norm", "f", "$B$"]}[name]  # fmt: skip
    after = ["norm"] if name in ("post_ln", "deepnorm") else []
    axes.set(xlim=(0, 10), ylim=(-0.6, 1.8))
    axes.axis("off")
    axes.annotate("", (9.8, 0), (0.2, 0), arrowprops={"arrowstyle": "->", "lw": 3})
    axes.plot([1, 1, 6.5, 6.5], [0, 1.2, 1.2, 0.2], color="black", lw=1)
    box = {"boxstyle": "round", "facecolor": "white"}
    for at, label in enumerate(branch):
        axes.text(1 + 5.5 * (at + 1) / (len(branch) + 1), 1.2, label, ha="center", va="center", bbox=box)
    axes.text(6.5, 0, "+", ha="center", va="center", fontsize=14, bbox={"boxstyle": "circle", "facecolor": "white"})
    on_stream = {"deepnorm": r"$\times \alpha$", "embedding_residual": "$a\\,x + b\\,x_0$",
                 "static_hyper_connections": "$A_r$", "hyper_connections": "$A_r$"}.get(name)  # fmt: skip
    if on_stream:
        axes.text(0.7 if name == "embedding_residual" else 3.5, 0, on_stream, ha="center", va="center", bbox=box)
    for label in after:
        axes.text(8, 0, label, ha="center", va="center", bbox=box)
    axes.text(0.2, 0.25, "x")


@torch.no_grad()
def _norm(axes: Axes, name: str, build: Build) -> None:
    """One of its outputs while that input varies and the other seven stay."""
    others, values = torch.randn(7), torch.linspace(-8, 8, 201)
    x_BTD = torch.cat([values[:, None], others.expand(201, 7)], dim=1)[None]
    axes.plot(values, build(d_model=8)(x_BTD)[0, :, 0])
    axes.set(xlabel="one input of eight, the others fixed", ylabel="its output")
    axes.grid(alpha=0.3)


def _attention(axes: Axes, name: str, build: Build) -> None:
    """Which heads of queries read which keys and values; of other attentions the weights of a head on one input, of
    what has no weights how each output depends on each input.
    """
    keys = {"multi_head": 4, "grouped_query": 2, "multi_query": 1}.get(name)
    if keys is None:
        mixer = build(d_model=WIDTH, num_heads=HEADS, causal=True, max_length=LENGTH, layer_index=0)
        return _weights(axes, mixer) if isinstance(mixer, DotProductAttention) else _dependence(axes, mixer)
    for head in range(4):
        at = (head // (4 // keys) + 0.5) * 4 / keys
        axes.plot([head + 0.5, at], [1, 0], color="tab:blue")
    axes.scatter([head + 0.5 for head in range(4)], [1] * 4, s=300, color="tab:blue", zorder=2)
    axes.scatter([(one + 0.5) * 4 / keys for one in range(keys)], [0] * keys, s=300, color="tab:orange", zorder=2)
    axes.set(xlim=(0, 4), ylim=(-0.4, 1.4), yticks=[0, 1], yticklabels=["keys, values", "queries"], xticks=[])
    axes.spines[:].set_visible(False)


def _dependence(axes: Axes, mixer: Mixer) -> None:
    """The norm of the gradient of each output by each input, of random weights and inputs; each row up to 1."""
    torch.manual_seed(0)
    x_1TD = torch.randn(1, LENGTH, WIDTH, requires_grad=True)
    out_1TD = mixer(x_1TD, build_scope(x_1TD, PositionEncoding(), causal=True))
    weights_TT = torch.stack(
        [torch.autograd.grad(out_1TD[0, t].sum(), x_1TD, retain_graph=True)[0][0].norm(dim=1) for t in range(LENGTH)]
    )
    axes.imshow(weights_TT / weights_TT.amax(dim=1, keepdim=True), cmap="viridis")
    axes.set(xlabel="input", ylabel="output")


@torch.no_grad()
def _weights(axes: Axes, attention: DotProductAttention) -> None:
    """The weights of the first head on random states, with random projections, under alibi."""
    keeping, x_BTD = Eager(keep_weights=True), 2 * torch.randn(1, LENGTH, WIDTH)
    attention.backend = keeping
    attention(x_BTD, build_scope(x_BTD, ALiBi(HEADS), causal=True))
    assert keeping.weights_BHTS is not None
    hidden_TS = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    image = axes.imshow(keeping.weights_BHTS[0, 0].masked_fill(hidden_TS, float("nan")).numpy(), cmap="viridis")
    axes.set(xlabel="key", ylabel="query")
    axes.figure.colorbar(image, ax=axes, label="weight")  # type: ignore[union-attr]


@torch.no_grad()
def _feed_forward(axes: Axes, name: str, build: Build) -> None:
    """Its activation; of a gated one, of the gate; of a mixture of experts, what each of them counts."""
    layer, h = build(d_model=8, d_ff=8), torch.linspace(-4, 4, 201)
    if isinstance(layer, MixtureOfExperts):
        gates_NE = layer.gate(layer.router(h[:, None] * torch.randn(8)))
        best_NK = gates_NE.topk(layer.top_k).indices
        weights_NE = torch.zeros_like(gates_NE).scatter(1, best_NK, gates_NE.gather(1, best_NK))
        axes.plot(h, weights_NE / weights_NE.sum(dim=1, keepdim=True))
        axes.set(xlabel="along a line of states", ylabel="weight of each expert")
        return
    gated = isinstance(layer, GatedFeedForward)
    axes.plot(h, torch.zeros_like(h) if isinstance(layer, NoFeedForward) else layer.activate(h))
    axes.set(xlabel="gate's input" if gated else "h", ylabel="what multiplies $W_1x$" if gated else "activation")
    axes.grid(alpha=0.3)


def _init(axes: Axes, name: str, build: Build) -> None:
    """The standard deviations that it gives a GPT of four layers, d_model 64 and 256."""
    kinds = ("embedding", "attention.query", "attention.output", "feed_forward.up", "feed_forward.down")
    init = build()
    for at, width in enumerate((64, 256)):
        model = GPT(256, max_length=32, d_model=width, num_heads=HEADS, num_layers=4, init=lambda: init)
        weights = dict(model.named_parameters())
        drawn = [next(weights[key] for key in weights if f"{kind}.weight" in key) for kind in kinds]
        axes.bar([i + at * 0.4 for i in range(5)], [w.std().item() for w in drawn], 0.4, label=f"d_model={width}")
    axes.set_xticks([i + 0.2 for i in range(5)], kinds, fontsize=8)
    axes.set_ylabel("standard deviation")
    axes.legend()


def _schedule(axes: Axes, name: str, build: Build) -> None:
    """The learning rate over a training of 1,000 steps, of the optimizer's rate 1e-3."""
    schedule = build(total_steps=1000, lr=1e-3, d_model=WIDTH)
    axes.plot(range(1000), [1e-3 * schedule(step) for step in range(1000)])
    axes.set(xlabel="step of 1,000", ylabel="learning rate")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.grid(alpha=0.3)


def _averaging(axes: Axes, name: str, build: Build) -> None:
    """A weight that wanders, and what is evaluated; validations every 20 steps."""
    average, model = build(), nn.Linear(1, 1, bias=False)
    trained, evaluated = [], []
    for step in range(200):
        value = 1 - 0.98**step + 0.15 * torch.randn(()).item()
        with torch.no_grad():
            model.weight.fill_(value)
        average.after_step(model, step)
        if step % 20 == 19:
            average.before_validation(model, step)
        trained.append(value)
        found = average.weights()
        evaluated.append(value if found is None else found[0].item())
    axes.plot(trained, alpha=0.4, label="trained")
    axes.plot(evaluated, label="evaluated")
    axes.set(xlabel="step", ylabel="a weight")
    axes.legend()


def _ramp(axes: Axes, name: str, build: Build) -> None:
    """What a full size of 512 is at each of the first 1,000 steps."""
    ramp = build()
    axes.plot(range(1000), [ramp.size(512, step) for step in range(1000)])
    axes.set(xlabel="step", ylabel="size", ylim=(0, 560))
    axes.grid(alpha=0.3)


DRAWN: dict[str, Callable[[Axes, str, Build], None]] = {
    "position": _position, "residual": _residual, "norm": _norm, "attention": _attention,
    "feed_forward": _feed_forward, "init": _init, "schedule": _schedule, "averaging": _averaging,
    "batch_ramp": _ramp, "length_ramp": _ramp,
}  # fmt: skip
