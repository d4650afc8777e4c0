#include "child.hpp"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <new>
#include <system_error>

namespace catalogue {

namespace {

[[noreturn]] void fail(const char* what) {
    throw std::system_error(errno, std::generic_category(), what);
}

[[noreturn]] void be_the_child(void (*work)(const void* context), const void* context) {
    const rlimit no_core{0, 0};
    ::setrlimit(RLIMIT_CORE, &no_core);
    int status = 0;
    try {
        work(context);
    } catch (const std::bad_alloc&) {
        status = 4;
    }
    std::fflush(nullptr);
    ::_exit(status);  // what the parent registered for its own end is not the child's
}

}  // namespace

child_end run_in_child(void (*work)(const void* context), const void* context, bool capture) {
    std::fflush(nullptr);
    int ends[2] = {-1, -1};
    if (capture && ::pipe(ends) != 0) {
        fail("pipe");
    }
    const pid_t child = ::fork();
    if (child < 0) {
        fail("fork");
    }
    if (child == 0) {
        if (capture) {
            ::dup2(ends[1], STDERR_FILENO);
            ::close(ends[0]);
            ::close(ends[1]);
        }
        be_the_child(work, context);
    }

    child_end end;
    if (capture) {
        ::close(ends[1]);
        char piece[4096];
        for (ssize_t n = 0; (n = ::read(ends[0], piece, sizeof piece)) > 0;) {
            end.output.append(piece, static_cast<std::size_t>(n));
        }
        ::close(ends[0]);
    }
    int status = 0;
    if (::waitpid(child, &status, 0) != child) {
        fail("waitpid");
    }
    end.signalled = WIFSIGNALED(status);
    end.number = end.signalled ? WTERMSIG(status) : WEXITSTATUS(status);
    return end;
}

}  // namespace catalogue
