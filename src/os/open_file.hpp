#pragma once

// A file that is read in pieces, floor 0. By system calls of its own: the C library's functions are cancellation
// points.

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

namespace pmr_debug::os {

/// A regular file, open for reading; with nothing in it if it cannot be had.
class open_file {
public:
    explicit open_file(const char* path) noexcept
        : descriptor_(static_cast<int>(::syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0))) {
        struct stat about {};
        if (descriptor_ >= 0 && ::fstat(descriptor_, &about) == 0 && S_ISREG(about.st_mode)) {
            bytes_ = static_cast<std::uint64_t>(about.st_size);
        }
    }
    open_file(const open_file&) = delete;
    open_file& operator=(const open_file&) = delete;
    ~open_file() {
        if (descriptor_ >= 0) {
            ::syscall(SYS_close, descriptor_);
        }
    }

    [[nodiscard]] int descriptor() const noexcept { return descriptor_; }
    [[nodiscard]] bool holds(std::uint64_t at, std::uint64_t bytes) const noexcept {
        return at <= bytes_ && bytes <= bytes_ - at;
    }
    /// Returns: false if not all of it is there.
    bool read(std::uint64_t at, void* to, std::size_t bytes) const noexcept {
        return holds(at, bytes) &&
               ::syscall(SYS_pread64, descriptor_, to, bytes, static_cast<long>(at)) == static_cast<long>(bytes);
    }
    template <class T>
    bool read(std::uint64_t at, T& out) const noexcept {
        return read(at, &out, sizeof out);
    }

private:
    int descriptor_;
    std::uint64_t bytes_ = 0;
};

}  // namespace pmr_debug::os
