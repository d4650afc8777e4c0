// A double free where there is little stack. Arguments: where (thread: one of PTHREAD_STACK_MIN; own: a thread on
// memory of the program; fiber: on the heap, without a guard; local: a fiber on an array of main; signal: in a handler
// on a signal stack of 12 KiB), and by which resource. What lies below must be as it was.

#include <pmr_debug/pmr_debug.hpp>

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>

namespace {

constexpr std::size_t size = 16 << 10;
constexpr std::size_t below = 64 << 10;

std::pmr::memory_resource* mem;
ucontext_t outside;
ucontext_t inside;
alignas(4096) char space[below + size];

__attribute__((noinline)) void freed_twice() {
    void* const p = mem->allocate(100);
    mem->deallocate(p, 100);
    mem->deallocate(p, 100);
}

void run_thread(char* stack) {
    pthread_attr_t how;
    pthread_attr_init(&how);
    if (stack != nullptr) {
        pthread_attr_setstack(&how, stack, size);
    } else {
        pthread_attr_setstacksize(&how, static_cast<std::size_t>(PTHREAD_STACK_MIN));
    }
    pthread_t t{};
    const auto body = [](void*) -> void* {
        freed_twice();
        return nullptr;
    };
    if (pthread_create(&t, &how, body, nullptr) != 0) {
        std::puts("no thread");
        std::exit(3);
    }
    pthread_join(t, nullptr);
}

void run_fiber(char* stack) {
    ::getcontext(&inside);
    inside.uc_stack.ss_sp = stack;
    inside.uc_stack.ss_size = size;
    inside.uc_link = &outside;
    ::makecontext(&inside, freed_twice, 0);
    ::swapcontext(&outside, &inside);
}

void run_signal(char* stack) {
    stack_t s{};
    s.ss_sp = stack + 4096;
    s.ss_size = size - 4096;
    ::sigaltstack(&s, nullptr);
    struct sigaction a {};
    a.sa_handler = [](int) { freed_twice(); };
    a.sa_flags = SA_ONSTACK;
    ::sigaction(SIGUSR1, &a, nullptr);
    ::raise(SIGUSR1);
}

void check(const char* memory) {
    std::size_t damaged = 0;
    for (std::size_t i = 0; i < below; ++i) {
        damaged += memory[i] != 0x55 ? 1 : 0;
    }
    std::printf("%zu bytes damaged\n", damaged);
}

struct goes_on final : pmr_debug::report_handler {
    pmr_debug::action handle(const pmr_debug::report& r) noexcept override {
        return pmr_debug::text_handler({.abort_on_error = false}).handle(r);
    }
};

void run(std::string_view where, char* memory) {
    std::memset(memory, 0x55, below);
    if (where == "thread") {
        run_thread(nullptr);
    } else if (where == "own") {
        run_thread(memory + below);
    } else if (where == "signal") {
        run_signal(memory + below);
    } else {
        run_fiber(memory + below);
    }
    check(memory);
}

}  // namespace

int main(int, char** argv) {
    const std::string_view where = argv[1];
    const std::string_view which = argv[2];
    goes_on handler;
    pmr_debug::set_default_report_handler(&handler);
    pmr_debug::page_resource pages;
    pmr_debug::general_purpose_resource general(&pages, {.name = "general"});
    pmr_debug::tracking_resource tracking({.name = "tracking"});
    pmr_debug::canary_resource canary({.name = "canary"});
    pmr_debug::end_of_page_resource fence({.name = "fence"});
    pmr_debug::temp_resource temp({.name = "temp"});
    mem = which == "general"    ? static_cast<std::pmr::memory_resource*>(&general)
          : which == "tracking" ? &tracking
          : which == "canary"   ? &canary
          : which == "fence"    ? &fence
          : which == "temp"     ? static_cast<std::pmr::memory_resource*>(&temp)
                                : &pages;
    if (where == "local") {
        alignas(16) char array[below + size];
        run(where, array);
    } else if (where == "fiber") {
        const std::unique_ptr<char[]> block(new char[below + size]);
        run(where, block.get());
    } else {
        run(where, space);
    }
}
