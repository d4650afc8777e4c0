#include "os/memory_limits.hpp"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

namespace pmr_debug::os {

namespace {

constexpr std::size_t longest_path = 1024;

/// Text of at most that many bytes; what is longer is cut. No cancellation point, as a read of the C library's is.
template <std::size_t N>
std::size_t read_file(const char* path, char (&text)[N]) noexcept {
    const long fd = ::syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return 0;
    }
    std::size_t n = 0;
    while (n < N) {
        const long got = ::syscall(SYS_read, fd, text + n, N - n);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            break;
        }
        n += static_cast<std::size_t>(got);
    }
    ::syscall(SYS_close, fd);
    return n;
}

/// Returns: the number a limit's file holds; no_limit for "max", and for what cannot be read.
std::size_t read_limit(const char* path) noexcept {
    char text[32];
    const std::size_t n = read_file(path, text);
    std::size_t value = 0;
    std::size_t at = 0;
    for (; at < n && text[at] >= '0' && text[at] <= '9'; ++at) {
        if (value > (no_limit - 9) / 10) {
            return no_limit;
        }
        value = value * 10 + static_cast<std::size_t>(text[at] - '0');
    }
    return at != 0 ? value : no_limit;
}

/// A path that is put together from pieces. One that would be too long is empty.
class path_buffer {
public:
    path_buffer& add(std::string_view piece) noexcept {
        if (piece.size() >= sizeof text_ - size_) {
            fits_ = false;
        } else {
            std::memcpy(text_ + size_, piece.data(), piece.size());
            size_ += piece.size();
        }
        text_[fits_ ? size_ : 0] = '\0';
        return *this;
    }
    [[nodiscard]] const char* c_str() const noexcept { return text_; }

private:
    char text_[longest_path]{};
    std::size_t size_ = 0;
    bool fits_ = true;
};

/// The least limit in \p group, a path below \p top, and in those above it. Where a container sees only part of the
/// tree the group's own path is not there; then \p top is its group.
std::size_t least_limit(std::string_view root, std::string_view top, std::string_view group,
                        std::string_view file) noexcept {
    std::size_t least = no_limit;
    for (;;) {
        path_buffer path;
        path.add(root).add(top).add(group).add(group.empty() || group.back() != '/' ? "/" : "").add(file);
        least = std::min(least, read_limit(path.c_str()));
        if (group.empty()) {
            return least;
        }
        const std::size_t cut = group.rfind('/');
        group = group.substr(0, cut == std::string_view::npos ? 0 : cut);
    }
}

/// True if \p list, names with commas between, holds "memory".
bool names_memory(std::string_view list) noexcept {
    while (!list.empty()) {
        const std::size_t comma = std::min(list.find(','), list.size());
        if (list.substr(0, comma) == "memory") {
            return true;
        }
        list.remove_prefix(std::min(comma + 1, list.size()));
    }
    return false;
}

}  // namespace

std::size_t address_space_limit() noexcept {
    rlimit r{};
    if (::getrlimit(RLIMIT_AS, &r) != 0 || r.rlim_cur == RLIM_INFINITY) {
        return no_limit;
    }
    return static_cast<std::size_t>(r.rlim_cur);
}

std::size_t control_group_limit(const char* membership, const char* root) noexcept {
    const int before = errno;
    char text[4096];
    std::string_view left(text, read_file(membership, text));
    std::size_t least = no_limit;
    // Lines of the form "number:controllers:path"; version 2 has the number 0 and names no controllers.
    while (!left.empty()) {
        const std::size_t end = std::min(left.find('\n'), left.size());
        const std::string_view line = left.substr(0, end);
        left.remove_prefix(std::min(end + 1, left.size()));
        const std::size_t first = line.find(':');
        const std::size_t second = first == std::string_view::npos ? first : line.find(':', first + 1);
        if (second == std::string_view::npos) {
            continue;
        }
        const std::string_view controllers = line.substr(first + 1, second - first - 1);
        const std::string_view group = line.substr(second + 1);
        if (controllers.empty()) {
            least = std::min({least, least_limit(root, "", group, "memory.max"),
                              least_limit(root, "/unified", group, "memory.max")});
        } else if (names_memory(controllers)) {
            least = std::min(least, least_limit(root, "/memory", group, "memory.limit_in_bytes"));
        }
    }
    errno = before;
    return least;
}

std::size_t control_group_limit() noexcept {
    return control_group_limit("/proc/self/cgroup", "/sys/fs/cgroup");
}

}  // namespace pmr_debug::os
