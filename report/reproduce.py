"""Runs everything that the pages quote: python report/reproduce.py

Each line of RUNS is one command, repeated for each seed. What is done is in report/<script>/runs.json and is not done
again, so this can be stopped at any time. All of it takes days on two CPU cores.

    python report/reproduce.py                everything that is missing
    python report/reproduce.py vae: cvae:m    what is missing of the runs whose script:run:seed starts with one of these
    python report/reproduce.py cvae:main:0    this one, even if it is done: its weights may be gone
    python report/reproduce.py --list         only say what would be run

The runs that choices.md quotes chose settings, and are not repeated.

runs.json: {run: {command, processor, seeds: {seed: metrics}}}, with the main run first. The main run's first seed also
writes report/<script>/. What else a run writes stays in runs/report/<script>-<run>-<seed>/, for comparisons.py.
When nothing is missing any more, the weights of report/page are written. Afterwards python report/comparisons.py draws,
python report/pages.py writes the numbers into the pages, and python report/page/build.py makes the browser's of them.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch

REPORT = Path(__file__).resolve().parent
ROOT = REPORT.parent
NOT_MAIN = "--no-prior --stop-at 2000"

# What section 6.4 measures in a run, at each entry of the history. Let the push be minus the gradient of the
# reconstruction error that straight-through gives to z, and outward the way from its code to z, z - e. Means over all z
# of 64 test images: the cosines of the push with outward and with z; the share of its energy that leads outward; and
# the lambda with which the pull of the commitment loss, 2 lambda |z - e| / (number of numbers), would balance it.
PUSH = [("""

# %% 3. Evaluation
""", """

def push_of(model, x):
    model.eval()
    z = model.encode(x).detach()
    e = model.quantizer(z)[0].detach().requires_grad_()
    (F.mse_loss(model.decode(e), x) / model.data_variance).backward()
    push, outward = -e.grad, z - e.detach()
    along = (push * F.normalize(outward, dim=1)).sum(1)  # (n, 8, 8)
    return {"push_cos_outward": float(F.cosine_similarity(push, outward).mean()),
            "push_cos_z": float(F.cosine_similarity(push, z).mean()),
            "push_outward_energy": float((along.clamp(min=0) ** 2).sum() / (push**2).sum()),
            "push_balance": float(along.mean() / (2 * outward.norm(dim=1) / z.numel()).mean())}


# %% 3. Evaluation
"""), ("""            entries.append(entry)
            save_checkpoint(checkpoint, model,""", """            entry.update(push_of(model, x_test[:64]))
            model.zero_grad()
            entries.append(entry)
            save_checkpoint(checkpoint, model,""")]
EARLY = [("LOG_EVERY = 100", "LOG_EVERY = 1")]  # measures after each update
FEW = [("    codes_train = encode_all(",  # nobody asks for the errors on all images
        "    x_train, x_test = x_train[:1000], x_test[:1000]\n    codes_train = encode_all(")]


def measured_if(condition):
    """The change that measures at other updates than each hundredth."""
    head = '        if {} or update == last:\n            entry = {{"update": update}}\n'
    return [(head.format("update % LOG_EVERY == 0"), head.format(condition))]


FIRST_60 = measured_if("update <= 60 or update % 10 == 0")
# For 64 test images: the share of units above 0 in that layer of the decoder's ReLUs which has the fewest, but for
# those inside the residual blocks, which the sum leads around; the norm of the push.
TRACE = [("""

# %% 3. Evaluation
""", """

def trace(model, x, args):
    model.eval()
    e = model.quantizer(model.encode(x).detach())[0].detach().requires_grad_()
    active, relu = [], F.relu

    def recorded(h, inplace=False):
        if h.shape[1] != args.num_residual_hiddens:
            active.append(float((h > 0).float().mean()))
        return relu(h)

    F.relu = recorded
    (F.mse_loss(model.decode(e), x) / model.data_variance).backward()
    F.relu = relu
    return {"decoder_least": min(active), "push_norm": float(e.grad.norm())}


# %% 3. Evaluation
"""), ("""            entries.append(entry)
            save_checkpoint(checkpoint, model,""", """            entry.update(trace(model, x_test[:64], args))
            model.zero_grad()
            entries.append(entry)
            save_checkpoint(checkpoint, model,"""),
         ("evaluate(model, x_test[:1000])", "evaluate(model, x_test[:64])")]


def longer(c, slow=False):
    """The change that makes z and the codes c times as long after update 1,000, and the decoder's first weights 1/c
    of themselves, so that no image changes. Adam's averages follow, so that its next steps are the old ones. From then
    on there is no commitment loss, and the encoder stands still. slow: these weights learn at 1/c of the rate."""
    last = f"""
            group = optimizer.param_groups[0]
            group["params"] = [p for p in group["params"] if p is not head]
            optimizer.add_param_group({{"params": [head], "lr": args.lr / c}})""" if slow else ""
    return [("""        x = x_train[torch""", f"""        if update == 1001:
            c, codes, head = {c}, model.quantizer, model.decoder[0].weight
            model.commitment_cost = 0
            model.encoder.requires_grad_(False)
            scaled = {{**{{p: c for p in model.encoder[-1].parameters()}}, head: 1 / c}}
            with torch.no_grad():
                for p, factor in scaled.items():
                    p.mul_(factor)
                    optimizer.state[p]["exp_avg"].div_(factor)
                    optimizer.state[p]["exp_avg_sq"].div_(factor**2)
                codes.codebook.mul_(c)
                codes.ema_sum.mul_(c){last}
        x = x_train[torch""")]


# Does the push know that z has moved? For 64 test images, after each update, from what is each z's own (the mean over
# images and places is taken away): the cosine of the push, minus the gradient at the decoder's input, with z - e; that
# of z - e with the sum of the pushes of earlier updates, each at length 1; that of the push with the one of five
# updates before; and the first one of all pushes and all z - e as two long vectors, in which strong pushes weigh more.
OWN = [*EARLY, *FEW, ("""

# %% 3. Evaluation
""", """

def own_push(model, x, past):
    model.eval()
    inputs = []
    handle = model.decoder.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    x_hat, z, e, _ = model(x)
    handle.remove()
    error = F.mse_loss(getattr(model, "x_hat_at_z", x_hat), x)
    push = -torch.autograd.grad(error, inputs[0])[0]
    push, away = [way - way.mean((0, 2, 3), keepdim=True) for way in (push, z - e)]
    cosine = lambda a, b: float(F.cosine_similarity(a, b).mean())
    result = {"own_cos_outward": cosine(push, away), "own_cos_past": cosine(away, sum(past, torch.zeros_like(z))),
              "own_cos_five": cosine(push, past[-5]) if len(past) > 4 else 0.0,
              "own_cos_whole": float(F.cosine_similarity(push.flatten(), away.flatten(), dim=0))}
    past.append(F.normalize(push, dim=1))
    return result


past = []


# %% 3. Evaluation
"""), ("""            entries.append(entry)
            save_checkpoint(checkpoint, model,""", """            entry.update(own_push(model, x_test[:64], past))
            model.zero_grad()
            entries.append(entry)
            save_checkpoint(checkpoint, model,""")]


STRAIGHT_THROUGH = "        return self.decode(z + (e - z).detach()), z, e, index\n"


def without_push_along(direction, part=".clamp(max=0)"):
    """The change that takes from the push, the negative of g, its part along a direction, where it leads that way; with
    part="" that part, wherever it leads."""
    return [*PUSH, (STRAIGHT_THROUGH, f"""        q = z + (e - z).detach()
        outward = (z - e).detach()

        def less(g):
            {direction}
            unit = F.normalize(direction, dim=1)
            return g - (g * unit).sum(1, keepdim=True){part} * unit

        if q.requires_grad:
            q.register_hook(less)
        return self.decode(q), z, e, index
""")]


# A direction along which the push has 60 % of its energy, about as much as outward in the runs without that part, and
# which else is random.
RANDOM = """push = F.normalize(-g, dim=1)
            noise = torch.randn_like(push)
            noise = F.normalize(noise - (noise * push).sum(1, keepdim=True) * push, dim=1)
            direction = 0.6**0.5 * push + 0.4**0.5 * noise"""
NO_QUANTIZER = [(STRAIGHT_THROUGH, "        return self.decode(z), z, e, index\n")]
# The gradient taken at z in place of e: the encoder learns from the image decoded from z, by a decoder that learns from
# codes only. Nothing else changes.
AT_Z = [*PUSH, (STRAIGHT_THROUGH, """        frozen = {name: p.detach() for name, p in self.decoder.named_parameters()}
        self.x_hat_at_z = torch.func.functional_call(self.decoder, frozen, (z,)) + 0.5
        return self.decode(e), z, e, index
"""), ("        loss = reconstruction +", """        at_z = F.mse_loss(self.x_hat_at_z, x) / self.data_variance
        loss = at_z - at_z.detach() + reconstruction +""")]
NO_MOMENTUM = [("args.lr, fused=True)", "args.lr, betas=(0.0, 0.999), fused=True)")]

# In place of straight-through: z is rotated and scaled to e, and gradients are rotated back (Fifty et al. 2025).
ROTATION = [*PUSH, (STRAIGHT_THROUGH, """        z_unit = F.normalize(z.detach(), dim=1)
        e_unit = F.normalize(e.detach(), dim=1)
        middle = F.normalize(z_unit + e_unit, dim=1)
        rotated = z - 2 * middle * (middle * z).sum(1, keepdim=True) + 2 * e_unit * (z_unit * z).sum(1, keepdim=True)
        scale = e.detach().norm(dim=1, keepdim=True) / z.detach().norm(dim=1, keepdim=True)
        return self.decode(scale * rotated), z, e, index
""")]
# In the manner of DiVeQ (Vali et al. 2026, arXiv:2509.26469), without noise: e is z plus the distance between them
# times a direction, and only the direction is held constant. So z gets no part of the push along z - e, out or in.
DIVEQ = [*PUSH, (STRAIGHT_THROUGH, """        distance = (e - z).norm(dim=1, keepdim=True)
        return self.decode(z + distance * F.normalize(e - z, dim=1).detach()), z, e, index
""")]
LEAKY = [("import common\n\nLOG_EVERY", "import common\n\nnn.ReLU, F.relu = nn.LeakyReLU, F.leaky_relu\nLOG_EVERY")]
# What breaks, one line each: for exercises.
MEAN = [('x.flatten(1), reduction="sum") / len(x)\n        kl', "x.flatten(1))\n        kl")]
LOGVAR_AS_SIGMA = [("return mu + torch.exp(0.5 * logvar) * torch", "return mu + logvar * torch")]
NOISY_TARGET = [("""            x_hat = model(add_noise(x))
            loss = criterion(x_hat, x)
""", """            noisy = add_noise(x)
            loss = criterion(model(noisy), noisy)
""")]
# A loss on all pixels, the visible ones included. What is measured stays the same.
WHOLE_IMAGE = [("    bce = F.binary_cross_entropy(x_hat.flatten(1)[:, ~visible], x[:, ~visible]",
                "    scored = torch.ones_like(visible) if model.training else ~visible\n"
                "    bce = F.binary_cross_entropy(x_hat.flatten(1)[:, scored], x[:, scored]")]
CODEBOOK_LOSS_AFTER = [(STRAIGHT_THROUGH, """        e = z + (e - z).detach()
        return self.decode(e), z, e, index
""")]
LAMBDA_ON_THE_CODEBOOK = [("reconstruction + self.commitment_cost * commitment", "reconstruction + commitment"),
                          ("loss = loss + codebook", "loss = loss + self.commitment_cost * codebook")]
# No commitment loss after update 1,000; and from then on, codes that stay where they are.
OFF = [("self.commitment_cost * commitment", "(self.quantizer.n_updates <= 1000) * self.commitment_cost * commitment")]
FROZEN = [("        if self.ema:\n", "        if self.ema and self.n_updates < 1000:\n"),
          ("if self.n_updates > self.revive_until:", "if self.n_updates > min(self.revive_until, 1000):")]
NOT_SHIFTED = [("self.token(torch.cat([start, index[:, :-1]], dim=1))", "self.token(index)")]
# Parts of what --reference does, alone.
CONSTANT_RATE = [("    if args.reference:\n        optimizer", "    if True:\n        optimizer")]
RELU_SKIP = [('"relu_skip": args.reference', '"relu_skip": True')]
NOTEBOOK_0 = "--reference --no-prior --commitment-cost 0"
SMALL_NOTEBOOK = "--reference --no-prior --n-updates 10000 --batch-size 32"
NOTEBOOK_WITHOUT = "--reference --no-prior --commitment-cost 0 --batch-size 32 --n-updates 3000"

# script, run, flags, number of seeds (or which), and changes of the script's text, if it takes any: [(old, new)]
RUNS = [
    ("ae", "main", "", 5),
    *[("ae", f"latent-{z}", f"--latent-dim {z}", 3) for z in (1, 4, 8, 16, 32)],
    ("denoise_ae", "main", "", 5),
    *[("denoise_ae", f"latent-{z}", f"--latent-dim {z}", 3) for z in (2, 6, 12)],
    # The bottleneck at as many parameters as 15,000 allow: what it gains, the other layers lose.
    *[("denoise_ae", f"budget-{z}", f"--latent-dim {z} --hidden-dim {width}", 3)
      for z, width in ((2, 22), (6, 20), (12, 19), (36, 13), (48, 11), (96, 7))],
    ("denoise_ae", "held-out", "--validation", 2),
    *[("denoise_ae", f"held-out-{z}", f"--validation --latent-dim {z} --hidden-dim {width}", 2)
      for z, width in ((12, 19), (36, 13))],
    ("denoise_ae", "held-out-as-assigned", "--validation --as-assigned", 2),
    ("denoise_ae", "as-assigned", "--as-assigned", 3),
    # Does it blur for want of parameters? Then with many times as many the error is far lower.
    ("denoise_ae", "wide", "--hidden-dim 64", 2),
    ("denoise_ae", "two-epochs", "--n-epochs 2", 1),
    ("denoise_ae", "break-target", "--n-epochs 2", 1, NOISY_TARGET),
    ("vae", "main", "", 5),
    *[("vae", f"beta-{beta}", f"--beta {beta}", 3) for beta in (0, 0.1, 0.3, 3, 10)],
    ("vae", "plane", "--latent-dim 2", 1),
    ("vae", "binarized", "--binarize", 5),
    ("vae", "binarized-100", "--binarize --n-epochs 100", 3),
    ("vae", "two-epochs", "--n-epochs 2", 1),
    ("vae", "three-epochs", "--n-epochs 3", 1),
    ("vae", "break-mean", "--n-epochs 2", 1, MEAN),
    ("vae", "break-sigma", "--n-epochs 2", 1, LOGVAR_AS_SIGMA),
    ("cvae", "main", "", 5),
    ("cvae", "no-label", "--no-label", 5),
    ("cvae", "as-vae", "--n-epochs 10 --batch-size 64 --lr 3e-3 --latent-dim 16", 5),  # "the same as the previous"
    ("cvae_structured", "main", "", 5),
    *[("cvae_structured", f"quadrants-{n}", f"--quadrants {n}", 5) for n in (2, 3)],
    *[("cvae_structured", f"learned-prior-{n}", f"--learned-prior --quadrants {n}", 3) for n in (1, 2, 3)],
    ("cvae_structured", "whole-image", "", 3, WHOLE_IMAGE),
    ("vqvae", "main", "", 3),
    ("vqvae", "long", "--no-prior --n-updates 50000", 1),
    # Without the commitment loss, to the end. Then other weights of it.
    *[("vqvae", f"lambda-{cost}", f"--no-prior --commitment-cost {cost}", 3) for cost in (0, 0.05, 1, 2)],
    # The notebook's recipe, with and without the commitment loss.
    ("vqvae", "notebook", "--reference --no-prior", 3, PUSH + TRACE[:2]),
    ("vqvae", "notebook-lambda-0", NOTEBOOK_0, 3, PUSH + TRACE[:2]),
    # Why does z run away without it? If because its gradient is taken at e, z stays short where it is taken at z. If
    # the outward part of the push carries z, z stays short without it; and if it is a matter of z's own code, not where
    # the part along another image's z - e is taken, or about as much along a random direction.
    ("vqvae", "notebook-at-z", NOTEBOOK_0, 3, AT_Z),
    ("vqvae", "notebook-without-outward", NOTEBOOK_0, 3, without_push_along("direction = outward")),
    ("vqvae", "notebook-without-other", NOTEBOOK_0, 3, without_push_along("direction = outward.roll(1, 0)")),
    ("vqvae", "notebook-without-random", NOTEBOOK_0, 1, without_push_along(RANDOM)),
    # Without the outward part few codes come into use. If the start of the codes is the cause, all do where they start
    # from data and are revived, and the error is then about that with the commitment loss.
    ("vqvae", "notebook-revive-without-outward",
     "--no-prior --lr 1e-3 --batch-size 256 --n-updates 15000 --commitment-cost 0", 3,
     CONSTANT_RATE + RELU_SKIP + without_push_along("direction = outward")),
    ("vqvae", "notebook-cpu", "--reference --no-prior --device cpu", 1),
    # What makes it cheap? Its recipe in ours' small batches, then with a codebook from data; the rest is the schedule.
    ("vqvae", "small-notebook", SMALL_NOTEBOOK, 3),
    ("vqvae", "small-notebook-revive", "--no-prior --lr 1e-3", 3, CONSTANT_RATE + RELU_SKIP),
    # Why does z grow without the commitment loss?
    ("vqvae", "lambda-0-decay-0.9", f"{NOT_MAIN} --commitment-cost 0 --decay 0.9", 3),
    ("vqvae", "lambda-0-decay-0.999", f"{NOT_MAIN} --commitment-cost 0 --decay 0.999", 3),
    ("vqvae", "lambda-0-half-lr", f"{NOT_MAIN} --commitment-cost 0 --lr 1e-3", 3),
    ("vqvae", "lambda-0-constant-lr", f"{NOT_MAIN} --commitment-cost 0 --lr 1e-3", 1, CONSTANT_RATE),
    # Is each z pushed away from its own code? These could refute it: if z grew all the same without the part of the
    # push that leads outward; if it stopped growing, too, where as much is taken along a random direction (then it is
    # the strength of the push); if taking the part along the code e did the same; and if z grew without a quantizer
    # (then it is no matter of codes).
    ("vqvae", "push", "--no-prior", 3, PUSH),
    ("vqvae", "push-lambda-0", "--no-prior --commitment-cost 0", 3, PUSH),
    ("vqvae", "push-no-quantizer", "--no-prior --commitment-cost 0", 3, NO_QUANTIZER),
    ("vqvae", "push-without-outward", "--no-prior --commitment-cost 0", 3, without_push_along("direction = outward")),
    ("vqvae", "push-without-random", f"{NOT_MAIN} --commitment-cost 0", 3, without_push_along(RANDOM)),
    ("vqvae", "push-without-e", "--no-prior --commitment-cost 0", 3,
     without_push_along("direction = q.detach()")),  # in value, q is e
    # After some thousand updates the mean cosine has fallen to 0, and z grows on. If the push drives it even then, it
    # does not when the cut begins only then: after update 2,000.
    ("vqvae", "push-cut-late", "--no-prior --stop-at 5000 --commitment-cost 0", 3,
     without_push_along("direction = outward * (self.quantizer.n_updates > 2000)")),
    # A cut of what leads outward only leaves what leads inward. So the same without either: z must not grow on.
    ("vqvae", "push-cut-late-both", "--no-prior --stop-at 5000 --commitment-cost 0", 2,
     without_push_along("direction = outward * (self.quantizer.n_updates > 2000)", part="")),
    ("vqvae", "diveq-lambda-0", "--no-prior --commitment-cost 0", 3, DIVEQ),
    ("vqvae", "rotation", "--no-prior", 3, ROTATION),
    ("vqvae", "rotation-lambda-0", "--no-prior --commitment-cost 0", 3, ROTATION),
    # The same with the notebook's recipe. First the cosine in the updates in which z runs away: if it is not above 0
    # there, the outward push is no explanation.
    ("vqvae", "notebook-early-lambda-0", "--reference --no-prior --stop-at 40 --commitment-cost 0", 3,
     PUSH + EARLY),
    ("vqvae", "notebook-early", "--reference --no-prior --stop-at 40", 3, PUSH + EARLY),
    ("vqvae", "notebook-early-without-outward", "--reference --no-prior --stop-at 40 --commitment-cost 0", 3,
     without_push_along("direction = outward") + EARLY),
    ("vqvae", "notebook-early-without-random", "--reference --no-prior --stop-at 40 --commitment-cost 0", 3,
     without_push_along(RANDOM) + EARLY),
    # Would any cut, or z without codes, do as well? Then it is no matter of z's own code.
    ("vqvae", "notebook-early-without-z", "--reference --no-prior --stop-at 40 --commitment-cost 0", 3,
     without_push_along("direction = z.detach()") + EARLY),
    ("vqvae", "notebook-early-no-quantizer", "--reference --no-prior --stop-at 40 --commitment-cost 0", 3,
     NO_QUANTIZER + EARLY),
    # Which part of z - e? All z share one code in these updates, so z - e has a part that is common to all of a batch
    # (the code lags behind their mean) and one of each z's own. If what is common drives z, a cut along that part alone
    # holds it, and one along another image's z - e as well; if each z is driven by what its own image wants, only a cut
    # along the rest does. And if the lag is needed, z stays short with codes that follow at once.
    *[("vqvae", f"notebook-early-without-{name}", "--reference --no-prior --stop-at 40 --commitment-cost 0", 3,
       without_push_along(f"direction = {direction}") + EARLY)
      for name, direction in (("common", "outward.mean((0, 2, 3), keepdim=True).expand_as(outward)"),
                              ("own", "outward - outward.mean((0, 2, 3), keepdim=True)"),
                              ("other", "outward.roll(1, 0)"))],
    ("vqvae", "notebook-early-decay", "--reference --no-prior --stop-at 40 --commitment-cost 0 --decay 0.5", 3,
     PUSH + EARLY),
    # Does the push drive z beyond a norm of 10, too? Then z does not pass 100 if the cut begins there.
    ("vqvae", "notebook-early-cut-late", "--reference --no-prior --stop-at 40 --commitment-cost 0", 3,
     without_push_along("direction = outward * (z.norm(dim=1).median() > 10)") + EARLY),
    ("vqvae", "notebook-early-cut-late-both", "--reference --no-prior --stop-at 40 --commitment-cost 0", 3,
     without_push_along("direction = outward * (z.norm(dim=1).median() > 10)", part="") + EARLY + FEW),
    # When the cosine has fallen to 0, the norm still grows. If Adam's momentum carries it, it hardly does without.
    ("vqvae", "notebook-early-no-momentum", "--reference --no-prior --stop-at 40 --commitment-cost 0", 3,
     PUSH + EARLY + NO_MOMENTUM),
    # How does the error come to stay at 0.99? If the length of z is the cause, a layer of the decoder's ReLUs is
    # switched off after z has leapt, and not before; and it is switched off, too, where nothing but the length is
    # changed.
    ("vqvae", "notebook-trace", "--reference --no-prior --stop-at 600 --commitment-cost 0", 3, TRACE + FIRST_60),
    ("vqvae", "notebook-trace-held", "--reference --no-prior --stop-at 600", 3, TRACE + FIRST_60),
    ("vqvae", "notebook-trace-without-outward", "--reference --no-prior --stop-at 600 --commitment-cost 0", 3,
     without_push_along("direction = outward") + TRACE + FIRST_60),
    *[("vqvae", f"longer-{c}", f"{SMALL_NOTEBOOK} --stop-at 1200", 3, TRACE + longer(c)
      + measured_if("update % 100 == 0 or update > 1000 and update % 10 == 0"))
      for c in (1, 10, 100, 1000)],
    # Is it that the push, taken at e, does not tell whether z has moved? Then z does not run away if the gradient is
    # taken at z, with the same codes, and nothing else is changed.
    ("vqvae", "notebook-early-at-z", "--reference --no-prior --stop-at 40 --commitment-cost 0", 3, AT_Z + EARLY),
    ("vqvae", "small-notebook-at-z", f"{SMALL_NOTEBOOK} --commitment-cost 0", 3, AT_Z),
    ("vqvae", "push-at-z", f"{NOT_MAIN} --commitment-cost 0", 3, AT_Z),
    # What has each z's own push to do with its way from the code, and this way with earlier pushes? (Seen first in runs
    # of the same seeds, so it refutes nothing.) And is the push the same again and again? If its cosine with the one of
    # five updates before is no larger with codes than without a quantizer, or with the gradient at z, it is not. (It is
    # not. Then what differs? If z is held by strong pushes on those z that have gone too far, the cosine where strong
    # pushes weigh more is lower without a quantizer, or with the gradient at z, than with codes.)
    ("vqvae", "notebook-own-lambda-0", "--reference --no-prior --stop-at 40 --commitment-cost 0", 3, OWN),
    ("vqvae", "notebook-own", "--reference --no-prior --stop-at 40", 3, OWN),
    ("vqvae", "notebook-own-no-quantizer", "--reference --no-prior --stop-at 40 --commitment-cost 0", 3,
     OWN + NO_QUANTIZER),
    ("vqvae", "notebook-own-at-z", "--reference --no-prior --stop-at 40 --commitment-cost 0", 3, OWN + AT_Z[-2:]),
    # If it is Adam's step that makes length harmful, it is harmless where the first weights' learning rate is 1 / c.
    ("vqvae", "longer-100-slow", f"{SMALL_NOTEBOOK} --stop-at 1200", 1, TRACE + longer(100, slow=True)
     + measured_if("update % 100 == 0 or update > 1000 and update % 10 == 0")),
    # Then all of it, in our batches and number of updates.
    ("vqvae", "small-notebook-lambda-0", f"{SMALL_NOTEBOOK} --commitment-cost 0", 3, PUSH),
    # Seed 2 ends at a norm of only 116. Had z never been longer when a layer goes off, length would not be its cause.
    ("vqvae", "small-notebook-trace", f"{SMALL_NOTEBOOK} --commitment-cost 0 --stop-at 200", 3, TRACE + FIRST_60 + FEW),
    ("vqvae", "small-notebook-without-outward", f"{SMALL_NOTEBOOK} --commitment-cost 0", 3,
     without_push_along("direction = outward")),
    ("vqvae", "small-notebook-without-random", f"{SMALL_NOTEBOOK} --commitment-cost 0", 3,
     without_push_along(RANDOM)),
    # Any cut of that size along a way from a code? Then one along another image's z - e holds z, too.
    ("vqvae", "small-notebook-without-other", f"{SMALL_NOTEBOOK} --commitment-cost 0", 3,
     without_push_along("direction = outward.roll(1, 0)")),
    ("vqvae", "small-notebook-diveq", f"{SMALL_NOTEBOOK} --commitment-cost 0", 3, DIVEQ),
    # Without the outward part few codes come into use. If the notebook's start is the cause, many do with codes from
    # data.
    ("vqvae", "small-notebook-revive-without-outward", "--no-prior --lr 1e-3 --commitment-cost 0", 3,
     CONSTANT_RATE + RELU_SKIP + without_push_along("direction = outward")),
    # If z runs away because its code follows it, it does not where codes stay.
    ("vqvae", "off", "--no-prior --stop-at 1300", 3, OFF),
    ("vqvae", "off-frozen", "--no-prior --stop-at 1300", 3, OFF + FROZEN),
    # With the notebook's recipe all z soon share one code, at an error of 0.98. Does it leave that plateau with codes
    # from data, with LeakyReLUs, without the outward part of the push?
    ("vqvae", "plateau", NOTEBOOK_WITHOUT, 1),
    ("vqvae", "plateau-lambda-0.25", NOTEBOOK_WITHOUT.replace("cost 0", "cost 0.25"), 1),
    ("vqvae", "plateau-from-data", "--no-prior --commitment-cost 0 --lr 1e-3 --n-updates 3000", 1,
     CONSTANT_RATE + RELU_SKIP),
    ("vqvae", "plateau-leaky", NOTEBOOK_WITHOUT, 1, LEAKY),
    ("vqvae", "plateau-without-outward", NOTEBOOK_WITHOUT, 1, without_push_along("direction = outward")),
    # Short runs with a whole schedule of their own.
    ("vqvae", "short", "--no-prior --n-updates 2000", 3),
    ("vqvae", "short-no-revive", "--no-prior --n-updates 2000 --no-revive", 3),
    ("vqvae", "short-codebook-loss", "--no-prior --n-updates 2000 --codebook-loss", 3),
    ("vqvae", "short-codebook-loss-lambda-0", "--no-prior --n-updates 2000 --codebook-loss --commitment-cost 0", 3),
    ("vqvae", "short-codebook-size-64", "--no-prior --n-updates 2000 --codebook-size 64", 3),
    *[("vqvae", f"short-{flag.replace('num-', '')}-{value}", f"--no-prior --n-updates 2000 --{flag} {value}", 3)
      for flag, values in (("hidden-dim", (64, 256)), ("num-residual-hiddens", (16, 64)),
                           ("num-residual-layers", (1, 4)))
      for value in values],
    # Is it the width that counts, or the number of parameters? Then a network of the same size has the same error: this
    # one, of width 128, has as many as the one with 256.
    ("vqvae", "short-as-large-as-256", "--no-prior --n-updates 2000 --num-residual-hiddens 320", 3),
    # Stopped before its numbers overflow.
    ("vqvae", "break-codebook-after", "--no-prior --n-updates 2000 --stop-at 200 --codebook-loss", 1,
     CODEBOOK_LOSS_AFTER),
    ("vqvae", "break-lambda", "--no-prior --n-updates 2000 --codebook-loss", 1, LAMBDA_ON_THE_CODEBOOK),
    ("vqvae", "break-shift", "--n-updates 2000", 1, NOT_SHIFTED),
]
HISTORY = {"update", "train_reconstruction", "test_reconstruction", "test_perplexity", "test_codes_used",
           "test_z_norm", "test_code_norm", "test_quantization_error", "push_cos_outward", "push_cos_z",
           "push_outward_energy", "push_balance", "decoder_least", "push_norm",
           "own_cos_outward", "own_cos_past", "own_cos_five", "own_cos_whole"}  # for the figures: only vqvae.py's


def read_runs(script):
    path = REPORT / script / "runs.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_runs(script, runs):
    """One line for each seed, in the order of RUNS."""
    order = {run: i for i, (name, run, *_) in enumerate(RUNS) if name == script}
    entries = []
    for run, entry in sorted(runs.items(), key=lambda item: order.get(item[0], len(RUNS))):
        head = json.dumps({key: value for key, value in entry.items() if key != "seeds"})[:-1]
        entries.append(f'"{run}": {head}, "seeds": {seed_lines(entry["seeds"])}}}')
    (REPORT / script / "runs.json").write_text("{" + ",\n".join(entries) + "}\n", encoding="utf-8", newline="\n")


def seed_lines(seeds):
    """{seed: metrics} as JSON, one line for each seed."""
    in_order = sorted(seeds.items(), key=lambda item: int(item[0]))
    return "{\n" + ",\n".join(f'  "{seed}": {json.dumps(metrics)}' for seed, metrics in in_order) + "}"


def trimmed(metrics, script):
    """Metrics without folders, with few of the histories, and with six digits."""
    kept = {}
    for key, value in metrics.items():
        if key.endswith("_dir"):
            continue
        if key == "history":
            if script == "vqvae":
                kept[key] = {name: rounded(values) for name, values in value.items() if name in HISTORY}
        elif isinstance(value, dict):
            kept[key] = trimmed(value, script)
        else:
            kept[key] = rounded(value)
    return kept


def rounded(value):
    """Six digits of a number, or of each number in a list or a dictionary."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value


def folder(script, run, seed):
    """What this run wrote, weights and all."""
    return ROOT / "runs" / "report" / f"{script}-{run}-{seed}" / script


def changed(script, changes):
    """The script's text with changes [(old, new)], each old one of which stands there once."""
    text = (ROOT / f"{script}.py").read_text(encoding="utf-8")
    for old, new in changes:
        assert text.count(old) == 1, f"{script}.py no longer has, once:\n{old}"
        text = text.replace(old, new)
    return text


def run_once(script, run, flags, seed, changes):
    out_dir = folder(script, run, seed)
    out_dir.mkdir(parents=True, exist_ok=True)
    file = ROOT / f"{script}.py"
    if changes:  # run from a copy
        file = out_dir / file.name
        file.write_text(changed(script, changes), encoding="utf-8")
    command = [f"{script}.py", *flags.split(), "--seed"]
    print(f"\n-- {script}:{run}:{seed}: python {' '.join(command)} {seed}, {len(changes)} changes", flush=True)
    resume = ["--resume"] if (out_dir / "checkpoint-model.pt").exists() else []
    subprocess.run([sys.executable, str(file), *command[1:], str(seed), "--out-dir", str(out_dir.parent), *resume],
                   env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    metrics = json.loads((out_dir / "metrics.json").read_text(encoding="utf-8"))
    if run == "main" and seed == 0:
        metrics["settings"] = {key: value for key, value in metrics["settings"].items() if not key.endswith("_dir")}
        (REPORT / script / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8",
                                                      newline="\n")
        for figure in out_dir.glob("*.png"):
            shutil.copy(figure, REPORT / script)
    runs = read_runs(script)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    entry = runs.setdefault(run, {"command": f"python {' '.join(command)} SEED", "seeds": {}})
    entry["processor"] = capabilities.get("cpu_name") or platform.processor()
    entry["seeds"][str(seed)] = trimmed(metrics, script)
    write_runs(script, runs)


def to_do(only):
    """The runs that are missing, and those that are named in full: [(script, run, flags, seed, changes)]. only: the
    beginnings of their names, or nothing for all."""
    found = []
    for script, run, flags, seeds, *changes in RUNS:
        done = read_runs(script).get(run, {"seeds": {}})["seeds"]
        for seed in range(seeds) if isinstance(seeds, int) else seeds:
            name = f"{script}:{run}:{seed}"
            asked = not only or name.startswith(tuple(only))
            if name in only or (asked and str(seed) not in done):
                found.append((script, run, flags, seed, changes[0] if changes else []))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("only", nargs="*", help="the start of script:run:seed, such as ae: or vae:beta")
    parser.add_argument("--list", action="store_true", help="run nothing")
    args = parser.parse_args()
    todo = to_do(args.only)
    for script, run, flags, seed, changes in todo:
        print(f"to do: {script}:{run}:{seed}, python {script}.py {flags} --seed {seed}, {len(changes)} changes")
    if not args.list:
        for one in todo:
            run_once(*one)
        if not args.only:
            subprocess.run([sys.executable, str(REPORT / "page" / "export.py")], check=True)
