"""Instrumented with nothing but the OpenTelemetry API: where it goes is said on the command line."""

from __future__ import annotations

from digits import EPOCHS, Digits
from opentelemetry import metrics, trace

tracer = trace.get_tracer("digits")
meter = metrics.get_meter("digits")
train_loss = meter.create_gauge("train/loss")
train_lr = meter.create_gauge("train/lr")
grad_norm = meter.create_histogram("train/grad_norm")
images_seen = meter.create_counter("train/images", unit="{image}")
val_accuracy = meter.create_gauge("val/accuracy")
class_accuracy = meter.create_gauge("val/class_accuracy")

digits = Digits()
step = 0
accuracy = 0.0
for epoch in range(EPOCHS):
    for images, labels in digits.batches(epoch):
        # The span gives its step to every measurement inside, and its duration is a series too.
        with tracer.start_as_current_span("train step", attributes={"training.step": step}):
            loss, norm = digits.train(images, labels)
            train_loss.set(loss.item())
            train_lr.set(digits.learning_rate)
            grad_norm.record(norm.item())
            images_seen.add(len(images))
        step += 1
    accuracy, by_class, _ = digits.evaluate()
    val_accuracy.set(accuracy, {"training.step": epoch})
    for digit, value in enumerate(by_class):
        class_accuracy.set(value, {"training.step": epoch, "digit": digit})
digits.close(accuracy)
