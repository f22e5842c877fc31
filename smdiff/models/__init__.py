"""Networks as denoisers: MDLM's DiT, the wrapper every part of smdiff talks to, and the loader."""
