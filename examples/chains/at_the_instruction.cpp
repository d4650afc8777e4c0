/// \file
/// For the one write that nobody finds: tracking on end-of-page blocks, and faults explained. The program stops at the
/// instruction that steps over the end of a block, or touches a freed one.

#include "chain_example.hpp"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

__attribute__((noinline)) static void write_one_too_many(volatile int* numbers, int count) {
    for (int i = 0; i <= count; ++i) {
        numbers[i] = i;
    }
}

static void run() {
    const chains::report_and_go_on reports;
    const pmr_debug::fault_handler explain_faults({.handler = &pmr_debug::default_report_handler()});
    pmr_debug::end_of_page_resource fence({.name = "fence"});
    pmr_debug::tracking_resource scope(&fence, {.name = "scope"});

    void* const numbers = scope.allocate(10 * sizeof(int), alignof(int));
    chains::show(scope);
    write_one_too_many(static_cast<volatile int*>(numbers), 10);
    scope.deallocate(numbers, 10 * sizeof(int), alignof(int));
}

int main() {
    // In a child, as it does not survive.
    const pid_t child = ::fork();
    if (child == 0) {
        const rlimit no_core{0, 0};
        ::setrlimit(RLIMIT_CORE, &no_core);
        run();
        std::_Exit(EXIT_FAILURE);
    }
    int status = 0;
    const bool ended = child > 0 && ::waitpid(child, &status, 0) == child && WIFSIGNALED(status);
    std::puts(ended && WTERMSIG(status) == SIGSEGV ? "(ended by SIGSEGV)" : "(nothing happened)");
}
