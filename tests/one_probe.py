"""One probe trained alone, by autograd and `torch.optim.Adam`: what the batched grid is checked against."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from audiation.grid_inputs import GridStream
from audiation.heads import ProbeHead
from audiation.probe import WEIGHTED_SUM, Standardiser


class OneProbe:
    """Same streams, same initial weights, same inputs as in a stack; everything else is PyTorch's own."""

    def __init__(self, config, schedule, target, train, annotations):
        self.config, self.schedule, self.target = config, schedule, target
        self.layers = [i for i in sorted(train) if i > 0] if config.layer == WEIGHTED_SUM else [config.layer]
        self.standardisers = [
            Standardiser.fit(train[i]) if config.standardise else Standardiser.identity(train[i].shape[1])
            for i in self.layers
        ]
        self.inputs = [s(train[i]) for i, s in zip(self.layers, self.standardisers, strict=True)]
        self.targets = torch.stack([target.encode(a) for a in annotations])
        generator = torch.Generator().manual_seed(config.seed)
        dim = train[self.layers[0]].shape[1]
        self.head = ProbeHead(dim, target.num_outputs, config.hidden_size, generator=generator)
        self.mix = None
        parameters = list(self.head.parameters())
        if config.layer == WEIGHTED_SUM:
            self.mix = torch.nn.Parameter(torch.randn(len(self.layers), generator=generator))
            parameters.append(self.mix)
        self.stream = GridStream(config, schedule, len(annotations))
        self.optimiser = torch.optim.Adam(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.step = 0

    def _forward(self, inputs, drop_input=None, drop_hidden=None):
        if self.mix is None:
            x = inputs[0]
        else:
            x = sum(w * one for w, one in zip(F.softmax(self.mix, 0), inputs, strict=True))
        x = x if drop_input is None else x * drop_input
        if self.head.hidden is not None:
            x = torch.relu(self.head.hidden(x))
            x = x if drop_hidden is None else x * drop_hidden
        return self.head.output(x)

    def train_step(self):
        """One update; gives the mean loss before it."""
        batch = self.stream.batch(self.step)
        dim, hidden = self.inputs[0].shape[1], self.config.hidden_size
        drop_input = self.stream.dropout(0, self.step, len(batch), dim) if self.config.input_dropout else None
        drop_hidden = None if hidden is None else self.stream.dropout(1, self.step, len(batch), hidden)
        logits = self._forward([x[batch] for x in self.inputs], drop_input, drop_hidden)
        loss = self.target.loss(logits, self.targets[batch]).mean
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def logits(self, vectors):
        return self._forward([s(vectors[i]) for i, s in zip(self.layers, self.standardisers, strict=True)])

    def train(self, valid, score):
        """The whole training by the schedule; gives (best score, best step, last step, scores)."""
        schedule, scores, best, since, rate_best, bad = (
            self.schedule,
            [],
            (float("-inf"), 0),
            0,
            float("-inf"),
            0,
        )
        per_look = schedule.look_every_steps or self.stream.batches_per_epoch
        if schedule.sampling == "epochs":
            self._steps(per_look)
        while True:
            value = float(score(self.logits(valid)[None])[0])
            scores.append(value)
            best, since = ((value, self.step), 0) if value > best[0] else (best, since + 1)
            if schedule.halve_patience is not None:
                if value > rate_best * (1 + 1e-4):
                    rate_best, bad = value, 0
                else:
                    bad += 1
                    if bad > schedule.halve_patience:
                        bad = 0
                        for group in self.optimiser.param_groups:
                            group["lr"] *= schedule.factor
            ends = schedule.patience is not None and since >= schedule.patience
            if schedule.max_epochs is not None:
                ends |= self.step // self.stream.batches_per_epoch >= schedule.max_epochs
            if ends and schedule.sampling == "epochs":
                break
            self._steps(per_look)
            if ends:
                break
        return (*best, self.step, scores)

    def _steps(self, count):
        for _ in range(count):
            self.train_step()
