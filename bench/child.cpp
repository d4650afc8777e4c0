#include "child.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <type_traits>

namespace bench {
namespace {

/// Effects: runs \p work in a child process. Returns: what it returned there.
template <class Work, class Result = std::invoke_result_t<Work&>>
std::optional<Result> in_child(Work work, std::string& error) {
    static_assert(std::is_trivially_copyable_v<Result>);
    std::array<int, 2> ends{};
    if (::pipe(ends.data()) != 0) {
        error = std::string("pipe: ") + std::strerror(errno);
        return std::nullopt;
    }
    std::fflush(nullptr);
    const pid_t child = ::fork();
    if (child < 0) {
        error = std::string("fork: ") + std::strerror(errno);
        ::close(ends[0]);
        ::close(ends[1]);
        return std::nullopt;
    }
    if (child == 0) {
        ::close(ends[0]);
        int status = 1;
        try {
            const Result result = work();
            status = ::write(ends[1], &result, sizeof result) == static_cast<ssize_t>(sizeof result) ? 0 : 1;
        } catch (const std::exception& e) {
            std::fprintf(stderr, "%s\n", e.what());
        }
        ::_exit(status);  // the parent's destructors are not the child's to run
    }
    ::close(ends[1]);
    Result result{};
    std::size_t got = 0;
    while (got < sizeof result) {
        const ssize_t n = ::read(ends[0], reinterpret_cast<char*>(&result) + got, sizeof result - got);
        if (n <= 0 && !(n < 0 && errno == EINTR)) {
            break;
        }
        got += n > 0 ? static_cast<std::size_t>(n) : 0;
    }
    ::close(ends[0]);
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (WIFSIGNALED(status)) {
        error = std::string("ended by signal ") + std::to_string(WTERMSIG(status));
    } else if (status != 0 || got != sizeof result) {
        error = "failed with status " + std::to_string(WEXITSTATUS(status));
    } else {
        return result;
    }
    return std::nullopt;
}

/// Returns: a field of /proc/self/status, in MiB; 0 if the system has no such thing.
double status_mib(const std::string& field) {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        if (line.starts_with(field)) {
            return std::stod(line.substr(field.size())) / 1024;
        }
    }
    return 0;
}

sample measure(const row& r, const workload& w) {
    scratch space(w.id);
    std::ofstream("/proc/self/clear_refs") << 5;  // the peak starts anew
    struct {
        const workload& w;
        scratch& space;
        sample result;
    } context{w, space, {}};
    const double before = status_mib("VmRSS:");
    r.with(
        [](std::pmr::memory_resource& resource, void* opaque) {
            auto& c = *static_cast<decltype(context)*>(opaque);
            c.result.result = run(c.w.id, resource, c.space);
        },
        &context);
    context.result.peak_mib = status_mib("VmHWM:") - before;
    return context.result;
}

}  // namespace

std::optional<sample> measure_in_child(const row& r, const workload& w, std::string& error) {
    auto result = in_child([&] { return measure(r, w); }, error);
    if (result && result->result.checksum != w.checksum) {
        std::array<char, 96> text{};
        std::snprintf(text.data(), text.size(), "wrong checksum: %016llx, not %016llx",
                      static_cast<unsigned long long>(result->result.checksum),
                      static_cast<unsigned long long>(w.checksum));
        error = text.data();
        return std::nullopt;
    }
    return result;
}

std::optional<extras> measure_in_child(extras (*measure_extra)(), std::string& error) {
    return in_child(measure_extra, error);
}

}  // namespace bench
