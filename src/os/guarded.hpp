#pragma once

// Data that must be found when something is wrong, floor 0. A program that writes beyond one of its own arrays writes
// to what the linker put behind it, which may be data of this library.

#include <cstddef>

namespace pmr_debug::os {

/// A static object between two pages that cannot be written to, once guard_pages() was called for it; its address is
/// that of any other static object, so it costs nothing to get at. The pages stay readable: leak checkers and garbage
/// collectors read all of a program's static data. An object of this type is constinit.
template <class T>
class guarded {
public:
#if defined(__x86_64__) || defined(__i386__)
    static constexpr std::size_t page = std::size_t{1} << 12;
#else
    static constexpr std::size_t page = std::size_t{1} << 16;  // the largest that the system may have
#endif

    [[nodiscard]] constexpr T& operator*() noexcept {
        return value_;
    }
    [[nodiscard]] constexpr T* operator->() noexcept {
        return &value_;
    }

    [[nodiscard]] void* before() noexcept {
        return before_;
    }
    [[nodiscard]] void* behind() noexcept {
        return behind_;
    }

private:
    alignas(page) unsigned char before_[page]{};
    alignas(page) T value_{};
    alignas(page) unsigned char behind_[page]{};
};

namespace detail {
void make_unwritable(void* page, std::size_t bytes) noexcept;
}  // namespace detail

/// Effects: a static object of this type, in the same file, installs the guards of \p data before main. A refusal
/// harms nothing by itself.
class guard_pages {
public:
    template <class T>
    explicit guard_pages(guarded<T>& data) noexcept {
        detail::make_unwritable(data.before(), guarded<T>::page);
        detail::make_unwritable(data.behind(), guarded<T>::page);
    }
};

}  // namespace pmr_debug::os
