"""Takes chunks from a cache in a random order: FOLDER LIMIT SEED NUM_READS LOG [hang].

Notes each chunk that it fetches in a line of LOG; exits with 1 where one is not what it must be.
"""

import os
import random
import sys
import threading
import time

from training.data.chunk_cache import ChunkCache

NUM_CHUNKS, CHUNK_BYTES, NUM_THREADS = 24, 50_000, 3


def chunk(number):
    return bytes([number]) * (CHUNK_BYTES + number)


def main():
    folder, limit, seed, num_reads, log = sys.argv[1:6]
    cache = ChunkCache(folder, int(limit))
    wrong = []
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def fetch(number):
        os.write(file, b"%d\n" % number)
        time.sleep(600 if sys.argv[6:] else 0.005)
        return chunk(number)

    def read(order):
        for number in order:
            content = cache.get(
                f"chunk{number:03}",
                lambda number=number: fetch(number),
                is_good=lambda content, number=number: content == chunk(number),
            )
            if content != chunk(number):
                wrong.append(number)

    threads = []
    for thread in range(NUM_THREADS):
        order = random.Random(f"{seed}{thread}").choices(range(NUM_CHUNKS), k=int(num_reads))
        threads.append(threading.Thread(target=read, args=(order,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
