import sys
import time

from tqdm import tqdm

bar = tqdm(total=4, desc="asked", mininterval=0.1)
for _ in range(4):
    time.sleep(0.3)
    bar.update()
tqdm.write("a word in between", file=sys.stderr)
bar.close()
