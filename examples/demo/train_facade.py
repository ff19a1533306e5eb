"""Instrumented with the facade: `Tracking` names the trackers, takes hyperparameters and gives a receipt."""

from __future__ import annotations

import sys

from digits import BATCH_SIZE, EPOCHS, LEARNING_RATE, Digits

import otel_tracking as ot

digits = Digits()
tracking = ot.Tracking(log_with=["tensorboard", "mlflow", "wandb"], project_dir=sys.argv[1])
tracking.init_trackers(
    "digits-facade",
    config={
        "epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
        "optimizer": {"name": "AdamW", "lr": LEARNING_RATE, "schedule": "one cycle"},
        "layers": ["conv 16", "conv 32", "linear 10"],
    },
)
step = 0
accuracy = 0.0
for epoch in range(EPOCHS):
    for images, labels in digits.batches(epoch):
        loss, norm = digits.train(images, labels)
        tracking.log(
            {"train/loss": loss, "train/grad_norm": norm, "train/lr": digits.learning_rate}, step=step
        )
        step += 1
    accuracy, by_class, misread = digits.evaluate()
    tracking.log(
        {
            "val/accuracy": accuracy,
            "val/class_accuracy": {f"digit_{digit}": value for digit, value in enumerate(by_class)},
            "val/misread": misread,
        },
        step=epoch,
    )
tracking.end_training()
if tracking.is_main_process:
    print(tracking.receipt(), flush=True)
digits.close(accuracy)
