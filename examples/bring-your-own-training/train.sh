#!/bin/sh
# The same logistic regression as train.py, with no framework and no language to install: a shell, od and awk.
# It shows how little a training program has to do; it knows the job's two columns and two tensors by heart.
set -eu

# task.json has one member a line.
member() { sed -n "s/^ *\"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" task.json | head -n 1; }
data=$(member path) rate=$(member learning_rate) steps=$(member local_steps)

# A safetensors file: the length of its header (8 bytes), the header, then the values. All tensors are trained, so the
# header of the update is the header of the weights.
header=$(($(od -An -tu8 -N8 weights.safetensors) + 8))
head -c "$header" weights.safetensors > update.safetensors
start=$(od -An -v -tf4 -j "$header" weights.safetensors | tr '\n' ' ')

# Prints the trained values as octal escapes of little-endian IEEE 754 bytes, which printf turns into bytes.
bytes=$(awk -F, -v start="$start" -v rate="$rate" -v steps="$steps" '
    function float_bytes(x,    sign, exponent, bits, i, text) {
        if (x == 0) return "\\0000\\0000\\0000\\0000"
        sign = x < 0; if (sign) x = -x
        exponent = 127
        while (x >= 2) { x /= 2; exponent++ }
        while (x < 1) { x *= 2; exponent-- }
        bits = sign * 2147483648 + exponent * 8388608 + int((x - 1) * 8388608 + 0.5)
        for (i = 0; i < 4; i++) { text = text sprintf("\\0%03o", bits % 256); bits = int(bits / 256) }
        return text
    }
    { sub(/\r$/, "") }
    NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next }
    { n++; x1[n] = $column["x1"]; x2[n] = $column["x2"]; y[n] = $column["y"] }
    END {
        split(start, value, " "); w1 = value[1]; w2 = value[2]; b = value[3]
        for (step = 0; step < steps; step++) {
            s1 = s2 = sb = 0
            for (i = 1; i <= n; i++) {
                error = 1 / (1 + exp(-(w1 * x1[i] + w2 * x2[i] + b))) - y[i]
                s1 += error * x1[i]; s2 += error * x2[i]; sb += error
            }
            w1 -= rate * s1 / n; w2 -= rate * s2 / n; b -= rate * sb / n
        }
        printf "%s%s%s", float_bytes(w1), float_bytes(w2), float_bytes(b)
    }' "$data")
printf '%b' "$bytes" >> update.safetensors
printf '{"steps": %d}\n' "$steps" > result.json
