from opentelemetry import metrics

loss = metrics.get_meter("train").create_gauge("train/loss")
for step in range(1000):
    loss.set(1 / (step + 1), {"training.step": step})
