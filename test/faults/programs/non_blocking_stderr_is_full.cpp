// Standard error is a non-blocking pipe, as other programs on the same terminal may leave it, and full for a moment.
// The report waits for the reader; where none reads at all, it does not wait for ever.
//
// Prints what arrived behind the program's own text. With "unread": how long two reports took while nobody read.
#include <pmr_debug/pmr_debug.hpp>

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <thread>

namespace {

void free_twice() {
    pmr_debug::text_handler go_on({.abort_on_error = false});
    pmr_debug::general_purpose_resource heap({.name = "heap", .handler = &go_on});
    void* const p = heap.allocate(64);
    heap.deallocate(p, 64);
    heap.deallocate(p, 64);
}

}  // namespace

int main(int argc, char**) {
    constexpr std::size_t own = 3900;
    int ends[2];
    if (::pipe(ends) != 0 || ::fcntl(ends[1], F_SETFL, O_NONBLOCK) != 0) {
        return 1;
    }
    ::fcntl(ends[1], F_SETPIPE_SZ, 4096);
    const bool unread = argc > 1;
    const pid_t child = ::fork();
    if (child == 0) {
        ::dup2(ends[1], 2);
        const std::string text(own, 'x');
        if (::write(2, text.data(), text.size()) < 0) {
            ::_exit(1);
        }
        const auto start = std::chrono::steady_clock::now();
        free_twice();
        if (unread) {
            free_twice();
            const auto took = std::chrono::steady_clock::now() - start;
            std::printf("%d s\n", static_cast<int>(std::chrono::duration_cast<std::chrono::seconds>(took).count()));
            std::fflush(stdout);
        }
        ::_exit(0);
    }
    ::close(ends[1]);
    if (unread) {
        int status = 0;
        ::waitpid(child, &status, 0);
        return status;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    std::string all;
    char piece[512];
    for (ssize_t n = 0; (n = ::read(ends[0], piece, sizeof piece)) > 0;) {
        all.append(piece, static_cast<std::size_t>(n));
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    std::printf("%s", all.size() > own ? all.c_str() + own : "nothing");
    return status;
}
