#include "measured.hpp"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <system_error>
#include <type_traits>

namespace demo {

namespace {

static_assert(std::is_trivially_copyable_v<run_result>);

[[noreturn]] void run_and_send(const std::function<run_result()>& run, int descriptor) {
    int status = EXIT_FAILURE;
    try {
        const run_result result = run();
        // Smaller than what a pipe takes in one piece.
        status = write(descriptor, &result, sizeof result) == ssize_t{sizeof result} ? EXIT_SUCCESS : EXIT_FAILURE;
    } catch (const std::exception& e) {
        std::cerr << "word_index: " << e.what() << '\n';
    }
    std::cout.flush();
    _exit(status);
}

[[noreturn]] void end_as(int status) {
    if (WIFSIGNALED(status)) {
        std::signal(WTERMSIG(status), SIG_DFL);
        std::raise(WTERMSIG(status));
    }
    std::exit(WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILURE);
}

}  // namespace

run_result in_own_process(const std::function<run_result()>& run) {
    std::array<int, 2> ends{};
    if (pipe(ends.data()) != 0) {
        throw std::system_error(errno, std::generic_category(), "pipe");
    }
    std::cout.flush();  // or the child prints it once more
    const pid_t child = fork();
    if (child == -1) {
        throw std::system_error(errno, std::generic_category(), "fork");
    }
    if (child == 0) {
        close(ends[0]);
        run_and_send(run, ends[1]);
    }
    close(ends[1]);
    run_result result;
    ssize_t received = 0;
    do {
        received = read(ends[0], &result, sizeof result);
    } while (received == -1 && errno == EINTR);
    close(ends[0]);
    int status = 0;
    rusage used{};
    while (wait4(child, &status, 0, &used) == -1) {
        if (errno != EINTR) {
            throw std::system_error(errno, std::generic_category(), "wait4");
        }
    }
    if (received != ssize_t{sizeof result} || status != 0) {
        end_as(status);
    }
    result.peak_resident_bytes = static_cast<std::uint64_t>(used.ru_maxrss) * 1024;
    return result;
}

run_result median(std::vector<run_result> results) {
    const auto middle = results.begin() + static_cast<std::ptrdiff_t>(results.size() / 2);
    std::nth_element(results.begin(), middle, results.end(),
                     [](const run_result& a, const run_result& b) { return a.seconds < b.seconds; });
    return *middle;
}

}  // namespace demo
