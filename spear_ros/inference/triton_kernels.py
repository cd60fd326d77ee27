"""Triton kernels of the fused chunk. Called through ``triton_ops.py``; importing needs triton.

Weights are (rows N, columns K), row-major, and are read once: an Euler step of five or six tokens
is bound by how fast the expert's weights stream in, a prefill by its matrix products, between which
these kernels are the short steps.

Sums are float32. Every result is written by one program in a fixed order, without atomics: the same
inputs give the same bits.
"""

import triton
import triton.language as tl


@triton.jit
def _gelu_tanh(x):
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x * tl.sigmoid(2.0 * inner)


@triton.jit
def add_norm_kernel(
    x, y, weight, bias, out, columns, floor,
    HAS_Y: tl.constexpr, LAYER: tl.constexpr, AFFINE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x += y, out = norm of x; one program per row.

    LAYER: layer norm with epsilon ``floor``, AFFINE with weight and bias. Otherwise
    x / sqrt((sum of squares + floor) / columns).
    """
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    value = tl.load(x + row * columns + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_Y:
        value += tl.load(y + row * columns + at, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(x.dtype.element_ty)
        tl.store(x + row * columns + at, rounded, mask=inside)
        value = rounded.to(tl.float32)
    if LAYER:
        value = tl.where(inside, value - tl.sum(value, 0) / columns, 0.0)
        value = value / tl.sqrt(tl.sum(value * value, 0) / columns + floor)
        if AFFINE:
            value = value * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
            value += tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    else:
        value = value / tl.sqrt((tl.sum(value * value, 0) + floor) / columns)
    tl.store(out + row * columns + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def geglu_kernel(gate_up, out, width, BLOCK: tl.constexpr):
    """(M, 2 F) rows [gate | up] -> gelu(gate) up; programs (M, F / BLOCK)."""
    row = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(gate_up + row * 2 * width + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + at, mask=inside, other=0.0).to(tl.float32)
    result = _gelu_tanh(gate) * up
    tl.store(out + row * width + at, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def rotate_store_kernel(
    qkv, factors, kv, heads, groups,
    HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Turn q in place, k into the cache, copy v to the cache; programs (M, heads + 2 groups).

    Pairs stand half a head apart. ``heads`` query heads come first; there may be none. ``factors``
    are (M, 2, HALF): cosines, sines.
    """
    token, head = tl.program_id(0), tl.program_id(1)
    at = tl.arange(0, BLOCK)
    inside = at < HALF
    source = qkv + (token * (heads + 2 * groups) + head) * 2 * HALF + at
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    turns = at < tl.where(head < heads + groups, HALF, 0)
    c = tl.load(factors + token * 2 * HALF + at, mask=turns, other=1.0)
    s = tl.load(factors + token * 2 * HALF + HALF + at, mask=turns, other=0.0)
    a, b = first * c - second * s, second * c + first * s
    query = at < tl.where(head < heads, HALF, 0)
    tl.store(source, a.to(qkv.dtype.element_ty), mask=query)
    tl.store(source + HALF, b.to(qkv.dtype.element_ty), mask=query)
    cached = at < tl.where(head < heads, 0, HALF)
    target = kv + (token * 2 * groups + head - heads) * 2 * HALF + at
    tl.store(target, a.to(kv.dtype.element_ty), mask=cached)
    tl.store(target + HALF, b.to(kv.dtype.element_ty), mask=cached)


@triton.jit
def skinny_linear_kernel(
    x, weight, bias, out, rows, columns, floor, M: tl.constexpr,
    NORM: tl.constexpr, HAS_BIAS: tl.constexpr, SILU: tl.constexpr, ADD: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out (M, N) = [out +] act(r x W' + b) for M <= 16; programs (N / BLOCK_N).

    NORM: r = 1 / sqrt((sum of squares of the row + floor) / columns), which needs no pass of its
    own. ADD: the product is added to what ``out`` holds; ``out`` must not be ``x``.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, 16)
    acc = tl.zeros((BLOCK_N, 16), tl.float32)
    squares = tl.zeros((16,), tl.float32)
    for start in range(0, columns, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        w = tl.load(
            weight + n[:, None] * columns + k[None, :],
            mask=(n[:, None] < rows) & (k[None, :] < columns), other=0.0,
        )  # fmt: skip
        v = tl.load(
            x + m[None, :] * columns + k[:, None],
            mask=(m[None, :] < M) & (k[:, None] < columns), other=0.0,
        )  # fmt: skip
        if NORM:
            wide = v.to(tl.float32)
            squares += tl.sum(wide * wide, 0)
        acc += tl.dot(w, v.to(w.dtype), input_precision='ieee')
    if NORM:
        acc = acc / tl.sqrt((squares + floor) / columns)[None, :]
    if HAS_BIAS:
        acc += tl.load(bias + n, mask=n < rows, other=0.0).to(tl.float32)[:, None]
    if SILU:
        acc = acc * tl.sigmoid(acc)
    target = out + m[None, :] * rows + n[:, None]
    inside = (m[None, :] < M) & (n[:, None] < rows)
    if ADD:
        acc += tl.load(target, mask=inside, other=0.0).to(tl.float32)
    tl.store(target, acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def skinny_geglu_kernel(
    x, weight, out, width, columns, floor,
    M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out (M, F) = gelu(r x G') (r x U'), rows [G | U] of weight, r as above; M <= 16."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, 16)
    gate = tl.zeros((BLOCK_N, 16), tl.float32)
    up = tl.zeros((BLOCK_N, 16), tl.float32)
    squares = tl.zeros((16,), tl.float32)
    for start in range(0, columns, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = (n[:, None] < width) & (k[None, :] < columns)
        at = weight + n[:, None] * columns + k[None, :]
        g = tl.load(at, mask=inside, other=0.0)
        u = tl.load(at + width * columns, mask=inside, other=0.0)
        v = tl.load(
            x + m[None, :] * columns + k[:, None],
            mask=(m[None, :] < M) & (k[:, None] < columns), other=0.0,
        )  # fmt: skip
        wide = v.to(tl.float32)
        squares += tl.sum(wide * wide, 0)
        gate += tl.dot(g, v.to(g.dtype), input_precision='ieee')
        up += tl.dot(u, v.to(u.dtype), input_precision='ieee')
    r = (1.0 / tl.sqrt((squares + floor) / columns))[None, :]
    result = _gelu_tanh(gate * r) * (up * r)
    inside = (m[None, :] < M) & (n[:, None] < width)
    tl.store(out + m[None, :] * width + n[:, None], result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def suffix_attention_kernel(
    qkv, kv, key_bias, factors, acc, peak, total, first, scale,
    M: tl.constexpr, FOLD: tl.constexpr, GROUPS: tl.constexpr, HALF: tl.constexpr,
    CAUSAL: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Attention of M suffix tokens over one piece of the keys; programs (pieces, GROUPS, blocks).

    The FOLD heads that share a key are rows: row = token * FOLD + head, BLOCK_R to a block; SPLIT:
    there are several blocks. Pieces but the last are BLOCK_T rows of the cache before ``first``;
    the last piece is the suffix itself, straight from ``qkv``. CAUSAL: token 0 sees only itself
    there, and its k and v are kept in cache row ``first``. Writes the unnormalised sum, the largest
    score and the sum of weights per row.
    """
    piece, group = tl.program_id(0), tl.program_id(1)
    last = tl.num_programs(0) - 1
    block = tl.program_id(2) if SPLIT else 0
    r = block * BLOCK_R + tl.arange(0, BLOCK_R)
    h, j = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_T)
    token = r // FOLD
    step = (GROUPS * FOLD + 2 * GROUPS) * 2 * HALF
    in_row, in_half = r < M * FOLD, h < HALF
    # queries, turned
    q_mask = in_row[:, None] & in_half[None, :]
    q_at = qkv + token[:, None] * step + (group * FOLD + r % FOLD)[:, None] * 2 * HALF + h[None, :]
    q1 = tl.load(q_at, mask=q_mask, other=0.0).to(tl.float32)
    q2 = tl.load(q_at + HALF, mask=q_mask, other=0.0).to(tl.float32)
    angles = factors + token[:, None] * 2 * HALF + h[None, :]
    c = tl.load(angles, mask=q_mask, other=1.0)
    s = tl.load(angles + HALF, mask=q_mask, other=0.0)
    a1, a2 = (q1 * c - q2 * s).to(kv.dtype.element_ty), (q2 * c + q1 * s).to(kv.dtype.element_ty)
    # keys and values: of the cache or of the suffix, the other load is masked off whole
    t = piece * BLOCK_T + j
    old = t < tl.where(piece < last, first, 0)
    new = j < tl.where(piece < last, 0, M)
    old_mask, new_mask = old[:, None] & in_half[None, :], new[:, None] & in_half[None, :]
    old_k = kv + t[:, None] * (4 * GROUPS * HALF) + group * 2 * HALF + h[None, :]
    new_k = qkv + j[:, None] * step + (GROUPS * FOLD + group) * 2 * HALF + h[None, :]
    k1 = tl.load(old_k, mask=old_mask, other=0.0) + tl.load(new_k, mask=new_mask, other=0.0)
    k2 = tl.load(old_k + HALF, mask=old_mask, other=0.0) + tl.load(
        new_k + HALF, mask=new_mask, other=0.0
    )
    far = 2 * GROUPS * HALF  # from a key to its value, in the cache and in qkv
    v1 = tl.load(old_k + far, mask=old_mask, other=0.0) + tl.load(
        new_k + far, mask=new_mask, other=0.0
    )
    v2 = tl.load(old_k + far + HALF, mask=old_mask, other=0.0) + tl.load(
        new_k + far + HALF, mask=new_mask, other=0.0
    )
    angles = factors + j[:, None] * 2 * HALF + h[None, :]
    c = tl.load(angles, mask=new_mask, other=1.0)
    s = tl.load(angles + HALF, mask=new_mask, other=0.0)
    b1 = (k1 * c - k2 * s).to(kv.dtype.element_ty)
    b2 = (k2 * c + k1 * s).to(kv.dtype.element_ty)
    if CAUSAL:
        keep = new & (j == 0)
        if SPLIT:
            keep = keep & (j < tl.where(block == 0, 1, 0))
        keep = keep[:, None] & in_half[None, :]
        target = kv + first * (4 * GROUPS * HALF) + group * 2 * HALF + j[:, None] * 0 + h[None, :]
        tl.store(target, b1, mask=keep)
        tl.store(target + HALF, b2, mask=keep)
        tl.store(target + far, v1.to(kv.dtype.element_ty), mask=keep)
        tl.store(target + far + HALF, v2.to(kv.dtype.element_ty), mask=keep)
    # scores
    scores = tl.dot(a1, tl.trans(b1), input_precision='ieee')
    scores += tl.dot(a2, tl.trans(b2), input_precision='ieee')
    bias = tl.load(key_bias + t, mask=old, other=0.0)
    scores = scores * scale + bias[None, :]
    seen = (old | new)[None, :] & in_row[:, None]
    if CAUSAL:
        seen = seen & (old[None, :] | (j == 0)[None, :] | (token > 0)[:, None])
    scores = tl.where(seen, scores, float('-inf'))
    # A finite floor: a piece of padding alone has weights 0 and not NaN.
    top = tl.maximum(tl.max(scores, 1), -1e30)
    weights = tl.exp(scores - top[:, None])
    out = ((piece * GROUPS + group) * M * FOLD + r) * 2 * HALF
    p = weights.to(kv.dtype.element_ty)
    sum1 = tl.dot(p, v1.to(kv.dtype.element_ty), input_precision='ieee')
    sum2 = tl.dot(p, v2.to(kv.dtype.element_ty), input_precision='ieee')
    tl.store(acc + out[:, None] + h[None, :], sum1, mask=q_mask)
    tl.store(acc + out[:, None] + HALF + h[None, :], sum2, mask=q_mask)
    row = (piece * GROUPS + group) * M * FOLD + r
    tl.store(peak + row, top, mask=in_row)
    tl.store(total + row, tl.sum(weights, 1), mask=in_row)


@triton.jit
def join_attention_kernel(
    acc, peak, total, out, pieces, GROUPS: tl.constexpr, FOLD: tl.constexpr, ROWS: tl.constexpr,
    DIM: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Join the pieces of :func:`suffix_attention_kernel`; programs (ROWS = M FOLD, GROUPS)."""
    row, group = tl.program_id(0), tl.program_id(1)
    s, d = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    at = (s * GROUPS + group) * ROWS + row
    tops = tl.load(peak + at, mask=s < pieces, other=-1e30)
    weights = tl.exp(tops - tl.max(tops, 0))
    weights = tl.where(s < pieces, weights, 0.0)
    sums = tl.load(total + at, mask=s < pieces, other=0.0)
    values = tl.load(
        acc + at[:, None] * DIM + d[None, :],
        mask=(s[:, None] < pieces) & (d[None, :] < DIM), other=0.0,
    )  # fmt: skip
    result = tl.sum(values * weights[:, None], 0) / tl.sum(sums * weights, 0)
    token, head = row // FOLD, group * FOLD + row % FOLD
    target = out + (token * GROUPS * FOLD + head) * DIM + d
    tl.store(target, result.to(out.dtype.element_ty), mask=d < DIM)


@triton.jit
def _store_action(at, fixed, value, keep, inside):
    tl.store(at, tl.where(keep, tl.load(fixed, mask=inside, other=0.0), value), mask=inside)


@triton.jit
def euler_kernel(
    actions, velocity, owed, held, out, step, rows, BLOCK: tl.constexpr
):  # fmt: skip
    """One Euler step of (H, 8) rows [x y z | w x y z | gripper]; one program.

    Straight in R^3 and for the gripper, along the geodesic on S^3 with w >= 0; committed rows take
    the values of ``owed``.
    """
    i = tl.arange(0, BLOCK)
    inside = i < rows
    keep = tl.load(held + i, mask=inside, other=0) != 0
    a, v, fixed, o = actions + i * 8, velocity + i * 8, owed + i * 8, out + i * 8
    for linear in tl.static_range(4):
        column = linear + 4 * (linear // 3)  # x, y, z, gripper
        moved = tl.load(a + column, mask=inside, other=0.0)
        moved += step * tl.load(v + column, mask=inside, other=0.0)
        _store_action(o + column, fixed + column, moved, keep, inside)
    qw = tl.load(a + 3, mask=inside, other=1.0)
    qx = tl.load(a + 4, mask=inside, other=0.0)
    qy = tl.load(a + 5, mask=inside, other=0.0)
    qz = tl.load(a + 6, mask=inside, other=0.0)
    vw = tl.load(v + 3, mask=inside, other=0.0)
    vx = tl.load(v + 4, mask=inside, other=0.0)
    vy = tl.load(v + 5, mask=inside, other=0.0)
    vz = tl.load(v + 6, mask=inside, other=0.0)
    radial = vw * qw + vx * qx + vy * qy + vz * qz
    vw, vx, vy, vz = vw - radial * qw, vx - radial * qx, vy - radial * qy, vz - radial * qz
    angle = tl.sqrt(vw * vw + vx * vx + vy * vy + vz * vz + 1e-30) * step
    near = angle < 1e-3
    safe = tl.where(near, 1.0, angle)
    reach = step * tl.where(near, 1.0 - angle * angle / 6.0, tl.sin(safe) / safe)
    turn = tl.cos(angle)
    qw, qx = turn * qw + reach * vw, turn * qx + reach * vx
    qy, qz = turn * qy + reach * vy, turn * qz + reach * vz
    length = tl.sqrt(qw * qw + qx * qx + qy * qy + qz * qz + 1e-30)
    length = tl.where(qw < 0, -length, length)
    _store_action(o + 3, fixed + 3, qw / length, keep, inside)
    _store_action(o + 4, fixed + 4, qx / length, keep, inside)
    _store_action(o + 5, fixed + 5, qy / length, keep, inside)
    _store_action(o + 6, fixed + 6, qz / length, keep, inside)
