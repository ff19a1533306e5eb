"""What both demos train: a small convolutional network on scikit-learn's digits, over two ranks or more."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

EPOCHS = int(os.environ.get("DEMO_EPOCHS", "12"))
BATCH_SIZE = 32
LEARNING_RATE = 0.01
CLASSES = 10


class Digits:
    """One rank's share of the training, and the held-out digits that all ranks have."""

    def __init__(self) -> None:
        dist.init_process_group("gloo")
        torch.manual_seed(0)
        data = load_digits()
        images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
        labels = torch.tensor(data.target)
        train, held_out = train_test_split(
            range(len(labels)), test_size=0.25, random_state=0, stratify=data.target
        )
        self._held_out = images[held_out], labels[held_out]
        dataset = TensorDataset(images[train], labels[train])
        self._sampler = DistributedSampler(dataset, seed=0)
        self._loader = DataLoader(dataset, BATCH_SIZE, sampler=self._sampler)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, CLASSES),
        )
        self.model = DistributedDataParallel(network)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), LEARNING_RATE)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, LEARNING_RATE, total_steps=EPOCHS * len(self._loader)
        )

    @property
    def learning_rate(self) -> float:
        return float(self._schedule.get_last_lr()[0])

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's images (n, 1, 8, 8) and labels (n,) of an epoch."""
        self._sampler.set_epoch(epoch)
        yield from self._loader

    def train(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step; the loss and the norm of the gradient."""
        self._optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self._optimizer.step()
        self._schedule.step()
        return loss.detach(), norm

    def evaluate(self) -> tuple[float, list[float], str]:
        """Accuracy on the held-out digits, the same for each class, and which were misread."""
        images, labels = self._held_out
        with torch.no_grad():
            read = self.model.module(images).argmax(1)
        right = read == labels
        by_class = [right[labels == c].float().mean().item() for c in range(CLASSES)]
        misread = [
            f"a {t} read as {r}" for t, r in zip(labels[~right].tolist(), read[~right].tolist(), strict=True)
        ]
        return right.float().mean().item(), by_class, ", ".join(misread) or "none"

    def close(self, accuracy: float) -> None:
        """Say how it went; a model that has not learnt is an error."""
        if dist.get_rank() == 0:
            print(f"accuracy on held-out digits: {accuracy:.1%}", flush=True)
        dist.destroy_process_group()
        if accuracy <= 0.95:
            raise SystemExit("the model should reach more than 95 %")
