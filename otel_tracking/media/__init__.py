"""Images, tables, audio, files, ... as people have them, made into files that any tracker can take."""
