/*
 * A plugin for QEMU that counts the instructions of a virtual machine, on each processor, in the
 * kernel and in programs. The machine asks for the counts so far with an instruction that does
 * nothing else, "nop dword ptr [rax + rax + 0x6b746c73]". They go to the file that the plugin's
 * argument names, on one line: in the kernel and in programs on processor 0, then on processor 1.
 *     cc -shared -fPIC -o count.so count.c
 *     VM_PLUGIN=count.so,out=counts tests/vm/boot ...
 * Debian has no header for plugins, so what is used of it is declared here (docs/devel/tcg-plugins.rst
 * of QEMU; version 1 of the interface).
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
typedef void (*vcpu_callback)(unsigned int vcpu, void *data);
typedef void (*tb_callback)(qemu_plugin_id_t id, struct qemu_plugin_tb *tb);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, tb_callback cb);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb, vcpu_callback cb, enum qemu_plugin_cb_flags flags, void *data);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, vcpu_callback cb, enum qemu_plugin_cb_flags flags, void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t idx);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum { PROCESSORS = 2 };
static uint64_t counts[PROCESSORS][2];
static FILE *out;
static const uint8_t marker[] = { 0x0f, 0x1f, 0x84, 0x00, 0x73, 0x6c, 0x74, 0x6b };

/* Each processor counts for itself, so that nothing has to be locked. */
static void kernel_block(unsigned int vcpu, void *instructions)
{
    counts[vcpu % PROCESSORS][0] += (uintptr_t)instructions;
}

static void program_block(unsigned int vcpu, void *instructions)
{
    counts[vcpu % PROCESSORS][1] += (uintptr_t)instructions;
}

static void print(unsigned int vcpu, void *data)
{
    (void)vcpu;
    (void)data;
    fprintf(out, "%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n",
            counts[0][0], counts[0][1], counts[1][0], counts[1][1]);
    fflush(out);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    size_t n = qemu_plugin_tb_n_insns(tb);
    /* The kernel has the upper half of the addresses. */
    int kernel = qemu_plugin_tb_vaddr(tb) >> 63;
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(tb, kernel ? kernel_block : program_block,
                                         QEMU_PLUGIN_CB_NO_REGS, (void *)(uintptr_t)n);
    for (size_t i = 0; i < n; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        if (qemu_plugin_insn_size(insn) == sizeof(marker) &&
            memcmp(qemu_plugin_insn_data(insn), marker, sizeof(marker)) == 0)
            qemu_plugin_register_vcpu_insn_exec_cb(insn, print, QEMU_PLUGIN_CB_NO_REGS, NULL);
    }
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    (void)info;
    if (argc != 1 || strncmp(argv[0], "out=", 4) != 0 || !(out = fopen(argv[0] + 4, "w")))
        return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}
