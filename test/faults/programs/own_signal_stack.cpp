// The program has a signal stack of its own, of argv[1] bytes. A report must not write below it. argv[2]: "handler" if
// the program has a handler of its own, which runs on that stack.

#include <pmr_debug/pmr_debug.hpp>

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

namespace {

constexpr std::size_t below = 1 << 18;
char* memory;

void count_damage() {
    std::size_t damaged = 0;
    for (std::size_t i = 0; i < below; ++i) {
        damaged += memory[i] != 0x55 ? 1 : 0;
    }
    char text[64];
    const int n = std::snprintf(text, sizeof text, "%zu bytes damaged\n", damaged);
    static_cast<void>(!::write(1, text, static_cast<std::size_t>(n)));
}

struct counts final : pmr_debug::report_handler {
    pmr_debug::action handle(const pmr_debug::report& r) noexcept override {
        pmr_debug::text_handler({.abort_on_error = false}).handle(r);
        count_damage();
        return pmr_debug::action::carry_on;
    }
};

}  // namespace

int main(int, char** argv) {
    const std::size_t size = std::strtoul(argv[1], nullptr, 10);
    memory = static_cast<char*>(
        ::mmap(nullptr, below + (1 << 17), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    std::memset(memory, 0x55, below);
    stack_t s{};
    s.ss_sp = memory + below;
    s.ss_size = size;
    if (::sigaltstack(&s, nullptr) != 0) {
        std::puts("0 bytes damaged, refused");
        return 3;
    }
    if (std::string_view(argv[2]) == "handler") {
        struct sigaction a {};
        a.sa_sigaction = [](int, siginfo_t*, void*) {
            count_damage();
            ::_exit(5);
        };
        a.sa_flags = SA_SIGINFO | SA_ONSTACK;
        ::sigaction(SIGSEGV, &a, nullptr);
    }
    counts handler;
    pmr_debug::fault_handler_options options;
    options.handler = &handler;
    const pmr_debug::fault_handler faults(options);
    pmr_debug::page_resource pages;
    pmr_debug::general_purpose_resource heap(&pages, {.name = "heap"});
    char* late = nullptr;
    {
        std::pmr::vector<char> v(100'000, &heap);
        late = v.data();
    }
    *static_cast<volatile char*>(late + 40) = 1;
}
