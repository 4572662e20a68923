"""The stages of the pipeline: a folder is a stage, a file is a tool that stages share."""
