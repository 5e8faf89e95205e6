"""Run research tools: ablations, fits, calibration, TPU compilation.

'lcgcn NAME' without 'research' also works.

Example: lcgcn research calibrate --model runs/small --data data/w300
"""
