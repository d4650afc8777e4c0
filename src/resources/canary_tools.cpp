// What Memcheck and AddressSanitizer are told about the memory of a canary resource: guards, and blocks that were
// freed, are closed to them. Memcheck hears of accesses only, as a block lies within one that the upstream announced,
// malloc for example, and a leak is a leak of that one.

#include "os/other_tools.hpp"
#include "resources/canary_core.hpp"

namespace pmr_debug::detail {

namespace {

void open_range(const void* p, std::size_t bytes) noexcept {
    os::unpoison(p, bytes);
    os::tell_defined(p, bytes);
}

void close_range(const void* p, std::size_t bytes) noexcept {
    os::poison(p, bytes);
    os::tell_inaccessible(p, bytes);
}

}  // namespace

void canary_core::show_live(const metadata::block_entry& e) const noexcept {
    const canary_layout at = layout(e.size, e.alignment);
    close_range(start(e) - at.front, at.front);
    close_range(start(e) + e.size, at.back);
}

void canary_core::open_guards(const metadata::block_entry& e) const noexcept {
    const canary_layout at = layout(e.size, e.alignment);
    open_range(start(e) - at.front, at.front);
    open_range(start(e) + e.size, at.back);
}

void canary_core::open_all(const metadata::block_entry& e) const noexcept {
    const canary_layout at = layout(e.size, e.alignment);
    open_range(start(e) - at.front, at.total);
}

void canary_core::close_all(const metadata::block_entry& e) const noexcept {
    const canary_layout at = layout(e.size, e.alignment);
    close_range(start(e) - at.front, at.total);
}

void canary_core::announce(std::byte* p, std::size_t bytes, std::size_t alignment) const noexcept {
    show_live({.address = p, .size = bytes, .alignment = alignment});
    os::tell_undefined(p, bytes);
}

void canary_core::deallocate_watched(const retired_block& b) noexcept {
    open_all(b.block);
    if (shape.guards && !has_guards(b.block)) {
        keep_overrun(b);
        return;
    }
    if (shape.fill) {
        freed.write(start(b.block), b.block.size);
    }
    if (shape.waits && quarantine.takes(b.bytes)) {
        close_all(b.block);
        retire(b);
    } else {
        give_back(b);
    }
}

}  // namespace pmr_debug::detail
