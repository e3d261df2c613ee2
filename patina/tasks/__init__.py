"""The kinds of training, one file each; each implements `patina.task.Task`."""
