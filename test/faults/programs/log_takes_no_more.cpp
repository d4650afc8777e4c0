// A JSON log whose descriptor refuses: with "pipe" its reader is gone, with "limit" the file may not grow. Both send a
// signal that ends a process. The report goes to standard error, and the program goes on. The argument "pending": the
// signal waits already, from the program itself; that one stays.
#include <pmr_debug/pmr_debug.hpp>

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <string_view>

int main(int argc, char** argv) {
    const std::string_view how = argc > 1 ? argv[1] : "pipe";
    const int signal = how == "limit" ? SIGXFSZ : SIGPIPE;
    int log = -1;
    if (how == "limit") {
        std::FILE* const file = std::tmpfile();
        log = file != nullptr ? ::fileno(file) : -1;
        const rlimit most{.rlim_cur = 0, .rlim_max = RLIM_INFINITY};
        if (::setrlimit(RLIMIT_FSIZE, &most) != 0) {
            return 1;
        }
    } else {
        int ends[2];
        if (::pipe(ends) != 0) {
            return 1;
        }
        ::close(ends[0]);
        log = ends[1];
    }
    sigset_t pending;
    if (how == "pending") {
        sigset_t block;
        sigemptyset(&block);
        sigaddset(&block, signal);
        ::sigprocmask(SIG_BLOCK, &block, nullptr);
        ::raise(signal);
    }
    {
        pmr_debug::json_handler to_log(log);
        pmr_debug::general_purpose_resource heap({.name = "heap", .handler = &to_log});
        void* const p = heap.allocate(64);
        heap.deallocate(p, 64);
        heap.deallocate(p, 64);
    }
    ::sigpending(&pending);
    std::printf("alive, %s waits\n", sigismember(&pending, signal) == 1 ? "the signal" : "no signal");
}
