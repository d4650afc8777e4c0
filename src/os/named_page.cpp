#include "os/named_page.hpp"

#include "os/virtual_memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

namespace pmr_debug::os {

namespace {

// A private mapping of a file in memory: of all that the kernel lists, its name can be chosen. Unlike names of
// anonymous mappings, every kernel since 3.17 has these.
constexpr std::string_view prefix = "/memfd:";
constexpr unsigned close_on_exec = 1;
constexpr unsigned not_executable = 8;  // MFD_NOEXEC_SEAL, Linux 6.3

/// Looks for the name in lines of "start-end access offset device inode   path", which come in pieces.
class line_reader {
public:
    explicit line_reader(std::string_view name) noexcept : name_(name) {}

    /// Returns: the start of the mapping, once its line is complete; 0: not yet.
    std::uintptr_t take(char c) noexcept {
        if (c == '\n') {
            const bool found = matched_ == prefix.size() + name_.size();
            const std::uintptr_t at = start_;
            *this = line_reader(name_);
            return found ? at : 0;
        }
        if (in_start_) {
            in_start_ = c != '-';
            const unsigned digit = static_cast<unsigned>(c >= 'a' ? c - 'a' + 10 : c - '0');
            start_ = in_start_ ? start_ * 16 + (digit & 15U) : start_;
        } else if (c == '/' && !in_path_) {
            in_path_ = true;
            matched_ = 1;
            at_ = 1;
        } else if (in_path_) {
            const std::size_t length = prefix.size() + name_.size();
            if (at_ < length) {
                matched_ += c == expected(at_) ? 1U : 0U;
            } else if (at_ == length && c != ' ') {
                matched_ = 0;  // a longer name
            }
            ++at_;
        }
        return 0;
    }

private:
    [[nodiscard]] char expected(std::size_t i) const noexcept {
        return i < prefix.size() ? prefix[i] : name_[i - prefix.size()];
    }

    std::string_view name_;
    std::uintptr_t start_ = 0;
    bool in_start_ = true;
    bool in_path_ = false;
    std::size_t at_ = 0;
    std::size_t matched_ = 0;
};

void* find(std::string_view name) noexcept {
    const int maps = ::open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (maps < 0) {
        return nullptr;
    }
    line_reader lines(name);
    std::uintptr_t found = 0;
    char text[4096];
    for (ssize_t n = 0; found == 0 && ((n = ::read(maps, text, sizeof text)) > 0 || (n < 0 && errno == EINTR));) {
        for (ssize_t i = 0; i < n && found == 0; ++i) {
            found = lines.take(text[i]);
        }
    }
    ::close(maps);
    return reinterpret_cast<void*>(found);
}

void* make(std::string_view name) noexcept {
    char text[64]{};
    std::memcpy(text, name.data(), name.size() < sizeof text ? name.size() : sizeof text - 1);
    long file = ::syscall(SYS_memfd_create, text, close_on_exec | not_executable);
    if (file < 0) {
        file = ::syscall(SYS_memfd_create, text, close_on_exec);
    }
    if (file < 0) {
        return nullptr;
    }
    const int descriptor = static_cast<int>(file);
    void* page = MAP_FAILED;
    if (::ftruncate(descriptor, static_cast<off_t>(page_size())) == 0) {
        page = ::mmap(nullptr, page_size(), PROT_READ | PROT_WRITE, MAP_PRIVATE, descriptor, 0);
    }
    ::close(descriptor);
    return page != MAP_FAILED ? page : nullptr;
}

}  // namespace

void* named_page(std::string_view name) noexcept {
    const int error = errno;
    void* page = find(name);
    if (page == nullptr) {
        void* const mine = make(name);
        // Another copy may have made one at the same time: all take the one that is listed first.
        page = mine != nullptr ? find(name) : nullptr;
        if (page != nullptr && page != mine) {
            ::munmap(mine, page_size());
        }
    }
    errno = error;
    return page;
}

}  // namespace pmr_debug::os
