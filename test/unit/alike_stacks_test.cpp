// Stacks that look alike: the same frame, and the same words wherever a former walk found a return address. What
// differs is where the next one is. And more call sites than there are places for rules.

#include "stack/capture.hpp"
#include "stack/unwinder.hpp"

#include <pmr_debug/stack_trace.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>

asm(R"(
.pushsection .text
.macro start name
.globl \name
.type \name, @function
\name:
    .cfi_startproc
.endm
.macro stop name
    ret
    .cfi_endproc
.size \name, . - \name
.endm

# (f, function): calls function(f) at a multiple of 64.
start alike_call
    push %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    mov %rsp, %rbp
    .cfi_def_cfa_register %rbp
    and $-64, %rsp
    call *%rsi
    leave
    .cfi_def_cfa %rsp, 8
    .cfi_restore %rbp
stop alike_call

# (f, n): calls f below n bytes, and finds back by its frame pointer.
start alike_by_frame_pointer
    push %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    mov %rsp, %rbp
    .cfi_def_cfa_register %rbp
    sub %rsi, %rsp
    call *%rdi
    leave
    .cfi_def_cfa %rsp, 8
    .cfi_restore %rbp
stop alike_by_frame_pointer

# Both have f called at the same place of the stack; the second one holds the first one's return address where that was.
start alike_first
    sub $40, %rsp
    .cfi_adjust_cfa_offset 40
    mov $192, %esi
    call alike_by_frame_pointer
alike_first_return:
    add $40, %rsp
    .cfi_adjust_cfa_offset -40
stop alike_first
start alike_second
    sub $72, %rsp
    .cfi_adjust_cfa_offset 72
    lea alike_first_return(%rip), %rax
    mov %rax, 24(%rsp)
    mov $160, %esi
    call alike_by_frame_pointer
    add $72, %rsp
    .cfi_adjust_cfa_offset -72
stop alike_second

# As compilers realign a stack: what it was is in a word of the frame.
start alike_realigned
    lea 8(%rsp), %r10
    .cfi_def_cfa %r10, 0
    and $-64, %rsp
    pushq -8(%r10)
    push %rbp
    mov %rsp, %rbp
    .cfi_escape 0x10, 0x06, 0x02, 0x76, 0x00
    push %r10
    .cfi_escape 0x0f, 0x03, 0x76, 0x78, 0x06
    sub $8, %rsp
    call *%rdi
    add $8, %rsp
    pop %r10
    .cfi_def_cfa %r10, 0
    pop %rbp
    .cfi_restore %rbp
    lea -8(%r10), %rsp
    .cfi_def_cfa %rsp, 8
stop alike_realigned
start alike_third
    sub $8, %rsp
    .cfi_adjust_cfa_offset 8
    call alike_realigned
alike_third_return:
    add $8, %rsp
    .cfi_adjust_cfa_offset -8
stop alike_third
start alike_fourth
    sub $24, %rsp
    .cfi_adjust_cfa_offset 24
    lea alike_third_return(%rip), %rax
    mov %rax, 8(%rsp)
    call alike_realigned
    add $24, %rsp
    .cfi_adjust_cfa_offset -24
stop alike_fourth

# 10 000 calls of f, every second one below a larger frame.
start alike_many
    push %rbx
    .cfi_adjust_cfa_offset 8
    .cfi_offset %rbx, -16
    mov %rdi, %rbx
.rept 5000
    call *%rbx
    sub $64, %rsp
    .cfi_adjust_cfa_offset 64
    call *%rbx
    add $64, %rsp
    .cfi_adjust_cfa_offset -64
.endr
    pop %rbx
    .cfi_adjust_cfa_offset -8
    .cfi_restore %rbx
stop alike_many
.popsection
)");

extern "C" void alike_call(void (*f)(), void (*function)(void (*)()));
extern "C" void alike_first(void (*f)());
extern "C" void alike_second(void (*f)());
extern "C" void alike_third(void (*f)());
extern "C" void alike_fourth(void (*f)());
extern "C" void alike_many(void (*f)());

namespace {

namespace stack = pmr_debug::stack;

// Unknown to the compiler, which would otherwise unroll loops, and so make several call sites of one.
volatile int three = 3;
unsigned compared = 0;
unsigned wrong = 0;
pmr_debug::trace_id latest = pmr_debug::trace_id::none;

/// A capture says what the unwinder says.
[[gnu::noinline]] void compare() {
    const auto frame = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
    stack::walk truth;
    stack::unwind(frame, 16, truth);
    latest = stack::capture(8, frame);
    const pmr_debug::trace_view v = pmr_debug::view(latest);
    const std::size_t common = std::min<std::size_t>(v.frames.size(), truth.depth);
    wrong += common >= 4 &&
                     std::equal(v.frames.begin(), v.frames.begin() + static_cast<std::ptrdiff_t>(common), truth.frames)
                 ? 0U
                 : 1U;
    ++compared;
    asm volatile("");
}

TEST(alike_stacks, are_told_apart_by_the_frame_pointer) {
    wrong = 0;
    for (int i = 0; i < three; ++i) {
        pmr_debug::trace_id of_each[2];
        for (int n = 0; n + 1 < three; ++n) {  // one call site
            alike_call(compare, n == 0 ? alike_first : alike_second);
            of_each[n] = latest;
        }
        EXPECT_NE(of_each[0], of_each[1]);
    }
    EXPECT_EQ(wrong, 0U);
}

TEST(alike_stacks, are_told_apart_by_what_a_realigned_stack_was) {
    wrong = 0;
    for (int i = 0; i < three; ++i) {
        pmr_debug::trace_id of_each[2];
        for (int n = 0; n + 1 < three; ++n) {
            alike_call(compare, n == 0 ? alike_third : alike_fourth);
            of_each[n] = latest;
        }
        EXPECT_NE(of_each[0], of_each[1]);
    }
    EXPECT_EQ(wrong, 0U);
}

// Rules that fall on the same place are those of other addresses.
TEST(alike_stacks, have_rules_of_their_own_at_each_call) {
    wrong = compared = 0;
    for (int i = 1; i < three; ++i) {
        alike_many(compare);
    }
    EXPECT_EQ(compared, 20'000U);
    EXPECT_EQ(wrong, 0U);
}

}  // namespace
