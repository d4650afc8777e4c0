// A page within the stack is protected, as a guard of a fiber's stack in an array, and code that keeps no frame
// pointers leaves the address of that page in their register. Resources that capture traces are used from there.

#include <pmr_debug/pmr_debug.hpp>

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory_resource>
#include <thread>

#if defined(__x86_64__)
extern "C" void with_frame_register(void (*step)(void*), void* context, std::uintptr_t value);
asm(R"(
    .pushsection .text
    .type with_frame_register, @function
with_frame_register:
    .cfi_startproc
    pushq %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    movq %rdx, %rbp
    movq %rdi, %rax
    movq %rsi, %rdi
    callq *%rax
    popq %rbp
    .cfi_restore %rbp
    .cfi_def_cfa_offset 8
    retq
    .cfi_endproc
    .size with_frame_register, . - with_frame_register
    .popsection
)");
#else
static void with_frame_register(void (*step)(void*), void* context, std::uintptr_t) {
    step(context);
}
#endif

namespace {

constexpr std::size_t page = 4096;

void use(void* context) {
    auto& mem = *static_cast<std::pmr::memory_resource*>(context);
    void* const p = mem.allocate(40);
    mem.deallocate(p, 40);
}

__attribute__((noinline)) void run(std::pmr::memory_resource& mem) {
    alignas(page) char area[4 * page];
    std::memset(area, 0, sizeof area);
    char* const guard = area + page;
    // Known before the page is protected, and after.
    for (const int protection : {PROT_READ | PROT_WRITE, PROT_NONE}) {
        ::mprotect(guard, page, protection);
        for (int again = 0; again < 3; ++again) {
            for (char* const at : {area, area + page - 16, area + page - 8, guard, guard + 8, guard + page - 16,
                                   guard + page - 8, guard + page}) {
                with_frame_register(use, &mem, reinterpret_cast<std::uintptr_t>(at));
            }
        }
    }
    ::mprotect(guard, page, PROT_READ | PROT_WRITE);
}

// Its frame is at the same place in all calls; that of its caller, see there, is not.
__attribute__((noinline)) void use_far_below(std::pmr::memory_resource& mem) {
    char area[2 * page];
    asm volatile("" : : "r"(static_cast<void*>(area)) : "memory");
    use(&mem);
    asm volatile("" : : "r"(static_cast<void*>(area)) : "memory");
}

/// Effects: protects, if \p once_was is not null, the page of that address, which lies within this function's memory.
/// Returns: the address of its frame.
__attribute__((noinline)) char* with_memory(std::pmr::memory_resource& mem, std::size_t bytes, char* once_was) {
    auto* const area = static_cast<char*>(__builtin_alloca(bytes + 2 * page));
    char* const protect = once_was == nullptr ? nullptr : once_was - reinterpret_cast<std::uintptr_t>(once_was) % page;
    if (protect != nullptr && (protect < area || protect + page > area + bytes + 2 * page)) {
        std::puts("the page is not in the area");
        return nullptr;
    }
    if (protect != nullptr) {
        ::mprotect(protect, page, PROT_NONE);
    }
    for (int again = 0; again < 5; ++again) {
        use_far_below(mem);
    }
    if (protect != nullptr) {
        ::mprotect(protect, page, PROT_READ | PROT_WRITE);
    }
    return static_cast<char*>(__builtin_frame_address(0));
}

__attribute__((noinline)) char* below(std::pmr::memory_resource& mem, std::size_t bytes, char* once_was) {
    auto* const area = static_cast<char*>(__builtin_alloca(5 * page - bytes));
    asm volatile("" : : "r"(static_cast<void*>(area)) : "memory");
    char* const frame = with_memory(mem, bytes, once_was);
    asm volatile("" : : "r"(static_cast<void*>(area)) : "memory");
    return frame;
}

/// A page that held a frame when the same chain of calls was captured before is protected now.
__attribute__((noinline)) void run_where_a_frame_was(std::pmr::memory_resource& mem) {
    char* const frame = below(mem, 0, nullptr);
    below(mem, 4 * page, frame);
}

}  // namespace

int main() {
    pmr_debug::general_purpose_resource general({.name = "general"});
    pmr_debug::tracking_resource tracking({.name = "tracking"});
    for (std::pmr::memory_resource* const mem :
         {static_cast<std::pmr::memory_resource*>(&general), static_cast<std::pmr::memory_resource*>(&tracking)}) {
        use(mem);
        run(*mem);
        std::thread(run, std::ref(*mem)).join();
        run_where_a_frame_was(*mem);
        std::thread(run_where_a_frame_was, std::ref(*mem)).join();
    }
    std::puts("went well");
}
