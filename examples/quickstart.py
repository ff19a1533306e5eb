import otel_tracking as ot

tracking = ot.Tracking(log_with=["tensorboard", "mlflow"], project_dir="outputs")
tracking.init_trackers("quickstart", config={"optimizer": "sgd", "lr": 0.1})
for step in range(1000):
    tracking.log({"train/loss": 1 / (step + 1), "train/lr": 0.1}, step=step)
tracking.end_training()
print(tracking.receipt())
