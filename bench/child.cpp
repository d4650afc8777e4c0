#include "child.hpp"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <new>
#include <type_traits>

namespace bench {
namespace {

struct child {
    pid_t process;
    int answer;  // to be read from
};

/// Effects: runs \p work in a child process, which hands back what it returns.
template <class Work, class Result = std::invoke_result_t<Work&>>
std::optional<child> start(Work work, std::string& error) {
    static_assert(std::is_trivially_copyable_v<Result>);
    std::array<int, 2> ends{};
    if (::pipe(ends.data()) != 0) {
        error = std::string("pipe: ") + std::strerror(errno);
        return std::nullopt;
    }
    std::fflush(nullptr);
    const pid_t process = ::fork();
    if (process < 0) {
        error = std::string("fork: ") + std::strerror(errno);
        ::close(ends[0]);
        ::close(ends[1]);
        return std::nullopt;
    }
    if (process == 0) {
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
    return child{process, ends[0]};
}

/// Effects: waits for the end of \p c. Returns: what its work returned.
template <class Result>
std::optional<Result> result_of(const child& c, std::string& error) {
    Result result{};
    std::size_t got = 0;
    while (got < sizeof result) {
        const ssize_t n = ::read(c.answer, reinterpret_cast<char*>(&result) + got, sizeof result - got);
        if (n <= 0 && !(n < 0 && errno == EINTR)) {
            break;
        }
        got += n > 0 ? static_cast<std::size_t>(n) : 0;
    }
    ::close(c.answer);
    int status = 0;
    while (::waitpid(c.process, &status, 0) < 0 && errno == EINTR) {
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

/// Effects: runs \p work in a child process. Returns: what it returned there.
template <class Work, class Result = std::invoke_result_t<Work&>>
std::optional<Result> in_child(Work work, std::string& error) {
    const std::optional<child> c = start(work, error);
    return c ? result_of<Result>(*c, error) : std::nullopt;
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

sample measure(const row& r, const workload& w, std::atomic<unsigned>* arrived = nullptr) {
    scratch space(w.id);
    space.arrived = arrived;
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

/// Returns: what the slower of two processes took; of memory the most.
std::optional<sample> measure_in_two(const row& r, const workload& w, std::string& error) {
    void* const shared =
        ::mmap(nullptr, sizeof(std::atomic<unsigned>), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        error = std::string("mmap: ") + std::strerror(errno);
        return std::nullopt;
    }
    auto* const arrived = ::new (shared) std::atomic<unsigned>(0);
    const auto work = [&] { return measure(r, w, arrived); };
    const std::optional<child> one = start(work, error);
    const std::optional<child> two = one ? start(work, error) : std::nullopt;
    std::optional<sample> first = one ? result_of<sample>(*one, error) : std::nullopt;
    const std::optional<sample> second = two ? result_of<sample>(*two, error) : std::nullopt;
    ::munmap(shared, sizeof(std::atomic<unsigned>));
    if (!first || !second) {
        return std::nullopt;
    }
    if (first->result.checksum != second->result.checksum) {
        first->result.checksum = 0;
    } else if (second->result.wall_ns > first->result.wall_ns) {
        first->result = second->result;
    }
    first->peak_mib = std::max(first->peak_mib, second->peak_mib);
    return first;
}

}  // namespace

std::optional<sample> measure_in_child(const row& r, const workload& w, std::string& error) {
    auto result = w.processes ? measure_in_two(r, w, error) : in_child([&] { return measure(r, w); }, error);
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
