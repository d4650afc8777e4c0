// The handler of a program for SIGABRT makes the same error again, on its way out. The process ends all the same.
#include <pmr_debug/pmr_debug.hpp>

#include <unistd.h>
#include <csignal>
#include <cstring>

namespace {

void* volatile nothing = nullptr;  // the compiler would warn of a plain one

std::pmr::memory_resource* heap_in_use;

void on_abort(int) {
    heap_in_use->deallocate(nothing, 8);
    constexpr char text[] = "cleaned up\n";
    (void)!::write(1, text, sizeof text - 1);
}

}  // namespace

int main(int argc, char** argv) {
    struct sigaction action {};
    action.sa_handler = on_abort;
    alignas(16) static char other_stack[1 << 16];
    if (argc > 1 && std::strcmp(argv[1], "altstack") == 0) {
        stack_t stack{};
        stack.ss_sp = other_stack;
        stack.ss_size = sizeof other_stack;
        ::sigaltstack(&stack, nullptr);
        action.sa_flags = SA_ONSTACK;
    }
    ::sigaction(SIGABRT, &action, nullptr);
    pmr_debug::general_purpose_resource heap({.name = "heap"});
    heap_in_use = &heap;
    heap.deallocate(nothing, 8);
}
