#pragma once

// Runs a program of test/faults/programs in a process of its own, with a limit of time, and tells how it ended.

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

namespace faults {

/// How a program ended, and what it wrote.
struct outcome {
    int status = 0;     ///< exit status; -1 if a signal ended it
    int signal = 0;     ///< the signal that ended it, or 0
    bool hung = false;  ///< killed, as the time was up
    std::string out;    ///< standard output
    std::string err;    ///< standard error

    [[nodiscard]] bool says(const std::string& text) const { return err.find(text) != std::string::npos; }
    [[nodiscard]] bool prints(const std::string& text) const { return out.find(text) != std::string::npos; }
    [[nodiscard]] std::size_t times(const std::string& text) const {
        std::size_t n = 0;
        for (std::size_t at = err.find(text); at != std::string::npos; at = err.find(text, at + text.size())) {
            ++n;
        }
        return n;
    }
};

/// Effects: runs \p body in a child, with its standard output and error read from pipes. The child is killed after
/// \p seconds. Without a core file.
inline outcome run_child(const std::function<void()>& body, int seconds = 30) {
    outcome o;
    int out[2];
    int err[2];
    if (::pipe2(out, O_CLOEXEC) != 0 || ::pipe2(err, O_CLOEXEC) != 0) {
        o.err = "no pipe";
        o.status = -1;
        return o;
    }
    const pid_t child = ::fork();
    if (child == 0) {
        ::setpgid(0, 0);
        const rlimit none{0, 0};
        ::setrlimit(RLIMIT_CORE, &none);
        ::dup2(out[1], 1);
        ::dup2(err[1], 2);
        body();
        ::_exit(127);
    }
    ::close(out[1]);
    ::close(err[1]);
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
    pollfd fds[2] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}};
    std::string* const texts[2] = {&o.out, &o.err};
    while (fds[0].fd >= 0 || fds[1].fd >= 0) {
        const auto left =
            std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()).count();
        if (left <= 0) {
            o.hung = true;
            ::kill(-child, SIGKILL);
            break;
        }
        if (::poll(fds, 2, static_cast<int>(left)) < 0 && errno != EINTR) {
            break;
        }
        for (int i = 0; i < 2; ++i) {
            if (fds[i].fd >= 0 && fds[i].revents != 0) {
                char piece[4096];
                const ssize_t n = ::read(fds[i].fd, piece, sizeof piece);
                if (n > 0) {
                    texts[i]->append(piece, static_cast<std::size_t>(n));
                } else if (n == 0 || errno != EINTR) {
                    fds[i].fd = -1;
                }
            }
        }
    }
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    ::close(out[0]);
    ::close(err[0]);
    o.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    o.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    return o;
}

/// The path of a program, or of a plugin ("name.so"), of this folder.
inline std::string path_of(const std::string& name) {
    return std::string(FAULT_PROGRAMS) + "/" + name;
}

/// Effects: runs programs/<name>.cpp with \p arguments. \p before runs in the child first: limits, descriptors.
inline outcome run(
    const std::string& name, std::vector<std::string> arguments = {}, int seconds = 30,
    const std::function<void()>& before = [] {}) {
    return run_child(
        [&] {
            before();
            const std::string path = path_of(name);
            std::vector<char*> argv{const_cast<char*>(path.c_str())};
            for (std::string& a : arguments) {
                argv.push_back(a.data());
            }
            argv.push_back(nullptr);
            ::execv(path.c_str(), argv.data());
        },
        seconds);
}

}  // namespace faults
