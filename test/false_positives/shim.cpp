#include "shim.hpp"

#include <cstddef>
#include <cstdint>
#include <new>

namespace {

/// In front of each block, as delete is not always told its size.
struct header {
    std::size_t bytes;  ///< of the whole block
    std::size_t alignment;
};

void* allocated(std::size_t bytes, std::size_t alignment) {
    const std::size_t front = alignment < sizeof(header) ? sizeof(header) : alignment;
    if (bytes > PTRDIFF_MAX - front) {
        throw std::bad_alloc();
    }
    auto* const p = static_cast<std::byte*>(false_positives::resource_below_new().allocate(bytes + front, front));
    std::byte* const user = p + front;
    ::new (user - sizeof(header)) header{bytes + front, front};
    return user;
}
void* allocated_or_null(std::size_t bytes, std::size_t alignment) noexcept {
    try {
        return allocated(bytes, alignment);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}
void freed(void* user) noexcept {
    if (user != nullptr) {
        const header h = static_cast<header*>(user)[-1];
        false_positives::resource_below_new().deallocate(static_cast<std::byte*>(user) - h.alignment, h.bytes,
                                                         h.alignment);
    }
}

constexpr std::size_t plain = __STDCPP_DEFAULT_NEW_ALIGNMENT__;
std::size_t value(std::align_val_t a) noexcept {
    return static_cast<std::size_t>(a);
}

}  // namespace

// clang-format off
void* operator new(std::size_t n) { return allocated(n, plain); }
void* operator new[](std::size_t n) { return allocated(n, plain); }
void* operator new(std::size_t n, std::align_val_t a) { return allocated(n, value(a)); }
void* operator new[](std::size_t n, std::align_val_t a) { return allocated(n, value(a)); }
void* operator new(std::size_t n, const std::nothrow_t&) noexcept { return allocated_or_null(n, plain); }
void* operator new[](std::size_t n, const std::nothrow_t&) noexcept { return allocated_or_null(n, plain); }
void* operator new(std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept { return allocated_or_null(n, value(a)); }
void* operator new[](std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept { return allocated_or_null(n, value(a)); }
void operator delete(void* p) noexcept { freed(p); }
void operator delete[](void* p) noexcept { freed(p); }
void operator delete(void* p, std::size_t) noexcept { freed(p); }
void operator delete[](void* p, std::size_t) noexcept { freed(p); }
void operator delete(void* p, std::align_val_t) noexcept { freed(p); }
void operator delete[](void* p, std::align_val_t) noexcept { freed(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { freed(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { freed(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { freed(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { freed(p); }
void operator delete(void* p, std::align_val_t, const std::nothrow_t&) noexcept { freed(p); }
void operator delete[](void* p, std::align_val_t, const std::nothrow_t&) noexcept { freed(p); }
// clang-format on
