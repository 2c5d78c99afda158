/* A memory image and a list of steps in, the logits of every step out: a model's machine code without Python.
 *
 * usage: arm_steps IMAGE STEPS.  IMAGE begins with the words below; all addresses in it are as if it lay at BASE.
 * STEPS is a run of step headers; after each, the logits' bytes and the header's first three words go to standard
 * output. */
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TEAM, TABLE, ENTRY_BYTES, THREADS, STEP, STEP_BYTES, LOGITS, ROW_BYTES };

extern void prepare(char *), run_step(char *), worker(char *, int64_t), quit(char *);
extern void *const kernels[]; /* one a stage, 0 ends the list */

static int64_t *words;

static void *work(void *thread) {
    worker((char *)words[TEAM], (int64_t)thread);
    return 0;
}

static uint64_t get_control(void) {
    uint64_t word;
    __asm__ volatile("mrs %0, fpcr" : "=r"(word));
    return word;
}

static int map(const char *name, void *at) {
    struct stat about;
    int file = open(name, O_RDONLY);
    if (file < 0 || fstat(file, &about)) return 1;
    return mmap(at, about.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, 0) == MAP_FAILED;
}

int main(int count, char **names) {
    if (count != 3 || map(names[1], (void *)BASE)) return 1;
    words = (int64_t *)BASE;
    char *team = (char *)words[TEAM], *step = (char *)words[STEP], header[words[STEP_BYTES]];
    for (int i = 0; kernels[i]; i++) *(void **)(words[TABLE] + i * words[ENTRY_BYTES]) = kernels[i];
    prepare(team);
    pthread_t threads[words[THREADS]];
    for (int64_t i = 1; i < words[THREADS]; i++)
        if (pthread_create(&threads[i], 0, work, (void *)i)) return 1;
    uint64_t flush = 1 << 24 | 3 << 22; /* subnormals to zero, rounding towards zero: a step must not care */
    __asm__ volatile("msr fpcr, %0" : : "r"(flush));
    FILE *steps = fopen(names[2], "rb");
    if (!steps) return 1;
    while (fread(header, words[STEP_BYTES], 1, steps)) {
        memcpy(step, header, words[STEP_BYTES]);
        run_step(team);
        if (get_control() != flush) return 2; /* nor change it */
        fwrite((void *)words[LOGITS], words[ROW_BYTES], ((int32_t *)step)[1], stdout);
        fwrite(step, 4, 3, stdout);
    }
    quit(team);
    for (int64_t i = 1; i < words[THREADS]; i++) pthread_join(threads[i], 0);
    return fclose(steps) | fflush(stdout);
}
