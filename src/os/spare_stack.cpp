#include "os/spare_stack.hpp"

#include "os/guarded.hpp"
#include "os/other_tools.hpp"
#include "os/virtual_memory.hpp"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PMR_DEBUG_OWN_STACKS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define PMR_DEBUG_OWN_STACKS 0
#endif
#endif
#if !defined(PMR_DEBUG_OWN_STACKS) && (defined(__x86_64__) || defined(__aarch64__))
#define PMR_DEBUG_OWN_STACKS 1
#elif !defined(PMR_DEBUG_OWN_STACKS)
#define PMR_DEBUG_OWN_STACKS 0
#endif

// NOLINTBEGIN(readability-identifier-naming): the sanitizers' names. Weak: the library need not be built with them.
extern "C" {
__attribute__((weak)) void __asan_init();
__attribute__((weak)) void __tsan_init();
}
// NOLINTEND(readability-identifier-naming)

#if PMR_DEBUG_OWN_STACKS

extern "C" __attribute__((visibility("hidden"))) void pmr_debug_call_on_stack(void (*step)(void*), void* context,
                                                                              void* top);

// A frame like any other, so unwinders and walks along frame pointers find the caller. It counts as a signal's frame:
// debuggers take frames that lie lower than those they called for the end of a stack, but not beyond such a one.
#if defined(__x86_64__)
asm(R"(
    .pushsection .text
    .p2align 4
    .globl pmr_debug_call_on_stack
    .hidden pmr_debug_call_on_stack
    .type pmr_debug_call_on_stack, @function
pmr_debug_call_on_stack:
    .cfi_startproc
    .cfi_signal_frame
    .byte 0xf3, 0x0f, 0x1e, 0xfa
    pushq %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    movq %rsp, %rbp
    .cfi_def_cfa_register %rbp
    movq %rdx, %rsp
    movq %rdi, %rax
    movq %rsi, %rdi
    callq *%rax
    movq %rbp, %rsp
    popq %rbp
    .cfi_def_cfa %rsp, 8
    retq
    .cfi_endproc
    .size pmr_debug_call_on_stack, . - pmr_debug_call_on_stack
    .popsection
)");
#else
asm(R"(
    .pushsection .text
    .p2align 4
    .globl pmr_debug_call_on_stack
    .hidden pmr_debug_call_on_stack
    .type pmr_debug_call_on_stack, %function
pmr_debug_call_on_stack:
    .cfi_startproc
    .cfi_signal_frame
    hint #34
    stp x29, x30, [sp, #-16]!
    .cfi_def_cfa_offset 16
    .cfi_offset 29, -16
    .cfi_offset 30, -8
    mov x29, sp
    .cfi_def_cfa_register 29
    mov sp, x2
    mov x9, x0
    mov x0, x1
    blr x9
    mov sp, x29
    .cfi_def_cfa_register 31
    ldp x29, x30, [sp], #16
    .cfi_restore 29
    .cfi_restore 30
    .cfi_def_cfa_offset 0
    ret
    .cfi_endproc
    .size pmr_debug_call_on_stack, . - pmr_debug_call_on_stack
    .popsection
)");
#endif

#endif

namespace pmr_debug::os {

#if PMR_DEBUG_OWN_STACKS

namespace {

constexpr std::uintptr_t enough_left = spare_stack_room / 4;

// Stacks that nobody uses now. No list and no lock: a signal handler may come at any point. What does not fit is given
// back to the system.
struct spare_stacks {
    std::atomic<void*> all[4]{};
};
constinit guarded<spare_stacks> spares;
const guard_pages spares_guards(spares);
constexpr auto& unused = spares->all;

// The stack that this thread's innermost step runs on, if it does. initial-exec: no allocation at first use.
constinit thread_local void* current __attribute__((tls_model("initial-exec"))) = nullptr;

// What a function finds above its return address: `syscall` reads there for an argument that it was not given.
constexpr std::size_t above_first_frame = 64;

// A page without permissions is at either end: whoever runs over the one, or reads above the other, notices at once.
std::size_t range_bytes() noexcept {
    return spare_stack_room + 2 * page_size();
}

void* make() noexcept {
    void* const range = reserve(range_bytes(), page_size());
    if (range == nullptr) {
        return nullptr;
    }
    auto* const low = static_cast<unsigned char*>(range) + page_size();
    if (!commit(low, spare_stack_room)) {
        unmap(range, range_bytes());
        return nullptr;
    }
    tell_stack(low, low + spare_stack_room);
    return range;
}

void give_back(void* range) noexcept {
    for (std::atomic<void*>& place : unused) {
        void* none = nullptr;
        // release pairs with the acquire in take: what was written on the stack comes before what will be.
        if (place.compare_exchange_strong(none, range, std::memory_order_release, std::memory_order_relaxed)) {
            return;
        }
    }
    unmap(range, range_bytes());
}

void* take() noexcept {
    for (std::atomic<void*>& place : unused) {
        if (place.load(std::memory_order_relaxed) != nullptr) {
            if (void* const range = place.exchange(nullptr, std::memory_order_acquire); range != nullptr) {
                return range;
            }
        }
    }
    return make();
}

struct call {
    void (*step)(void*);
    void* context;
    stack_t signals;  // the alternate stack
};

// Through `syscall`, not the C library's functions: one that was never called before is looked up by the loader on the
// caller's stack, and that takes kilobytes.
void set_signal_stack(const stack_t* now, stack_t* before) noexcept {
    ::syscall(SYS_sigaltstack, now, before);
}

void begin(void* argument) {
    call& c = *static_cast<call*>(argument);
    const bool from_signal = (c.signals.ss_flags & SS_ONSTACK) != 0;
    if (from_signal) {
        stack_t none{};
        none.ss_flags = SS_DISABLE;
        set_signal_stack(&none, nullptr);
    }
    c.step(c.context);
    if (from_signal) {
        c.signals.ss_flags &= ~SS_ONSTACK;
        set_signal_stack(&c.signals, nullptr);
    }
}

}  // namespace

bool on_spare_stack(void (*step)(void* context), void* context) noexcept {
    const auto here = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
    const auto low = reinterpret_cast<std::uintptr_t>(current);
    const bool on_one = low != 0 && here - low < range_bytes() && here - low >= enough_left;
    if (on_one || __asan_init != nullptr || __tsan_init != nullptr) {
        step(context);
        return true;
    }
    void* const range = take();
    if (range == nullptr) {
        return false;
    }
    call c{step, context, {}};
    c.signals.ss_flags = 0;
    set_signal_stack(nullptr, &c.signals);
    void* const outer = current;
    current = range;
    auto* const end = static_cast<unsigned char*>(range) + range_bytes() - page_size();
    pmr_debug_call_on_stack(begin, &c, end - above_first_frame);
    current = outer;
    give_back(range);
    return true;
}

bool prepare_spare_stack() noexcept {
    for (const std::atomic<void*>& place : unused) {
        if (place.load(std::memory_order_relaxed) != nullptr) {
            return true;
        }
    }
    void* const range = make();
    if (range == nullptr) {
        return false;
    }
    give_back(range);
    return true;
}

void give_back_spare_stacks() noexcept {
    for (std::atomic<void*>& place : unused) {
        if (void* const range = place.exchange(nullptr, std::memory_order_acquire); range != nullptr) {
            unmap(range, range_bytes());
        }
    }
}

#else

bool on_spare_stack(void (*step)(void* context), void* context) noexcept {
    step(context);
    return true;
}

bool prepare_spare_stack() noexcept {
    return true;
}

void give_back_spare_stacks() noexcept {}

#endif

}  // namespace pmr_debug::os
