#include <pmr_debug/collecting_handler.hpp>

#include "metadata/arena.hpp"
#include "os/virtual_memory.hpp"
#include "report/owned_lock.hpp"

#include <atomic>
#include <cstring>
#include <memory>
#include <new>

namespace pmr_debug {

namespace {

constexpr std::size_t text_memory = std::size_t{1} << 30;  // address space; pages are taken as needed
constexpr std::size_t first_text = 2048;

// A string that grows in an arena.
class growing_text {
public:
    explicit growing_text(metadata::arena& memory) noexcept : memory_(memory) {}

    static void sink(std::string_view piece, void* context) noexcept {
        static_cast<growing_text*>(context)->append(piece);
    }
    [[nodiscard]] bool failed() const noexcept { return failed_; }
    [[nodiscard]] std::string_view view() const noexcept { return {text_, used_}; }

private:
    void append(std::string_view piece) noexcept {
        if (used_ + piece.size() > room_ && !grow(used_ + piece.size())) {
            failed_ = true;
        }
        if (!failed_) {
            std::memcpy(text_ + used_, piece.data(), piece.size());
            used_ += piece.size();
        }
    }
    bool grow(std::size_t least) noexcept {
        std::size_t room = room_ == 0 ? first_text : room_;
        while (room < least) {
            room *= 2;
        }
        auto* const text = static_cast<char*>(memory_.allocate(room));
        if (text == nullptr) {
            return false;
        }
        if (text_ != nullptr) {
            std::memcpy(text, text_, used_);
            memory_.free(text_, room_);
        }
        text_ = text;
        room_ = room;
        return true;
    }

    metadata::arena& memory_;
    char* text_ = nullptr;
    std::size_t used_ = 0;
    std::size_t room_ = 0;
    bool failed_ = false;
};

}  // namespace

struct collecting_handler::storage {
    mutable detail::owned_lock lock;  // guards all but the counts
    std::atomic<std::uint64_t> counts[error_kind_count]{};
    metadata::arena memory;  // texts, leak groups and hints
    std::atomic<std::size_t> kept{0};
    // Constructed one by one: pages of entries that never come are never touched.
    alignas(entry) unsigned char entries[capacity * sizeof(entry)];

    [[nodiscard]] const entry* at(std::size_t index) const noexcept {
        return std::launder(reinterpret_cast<const entry*>(entries)) + index;
    }

    // Returns: false, nothing kept, if there is no memory for it.
    bool keep(const report& r) noexcept {
        growing_text text(memory);
        write_text(r, {}, &growing_text::sink, &text);
        auto* const leaks = static_cast<leak_group*>(r.leaks.empty() ? nullptr : memory.allocate(r.leaks.size_bytes()));
        auto* const hint = static_cast<char*>(r.hint.empty() ? nullptr : memory.allocate(r.hint.size()));
        if (text.failed() || (leaks == nullptr && !r.leaks.empty()) || (hint == nullptr && !r.hint.empty())) {
            return false;
        }
        const std::size_t index = kept.load(std::memory_order_relaxed);
        auto* const e = ::new (static_cast<void*>(entries + index * sizeof(entry))) entry{r, text.view()};
        if (leaks != nullptr) {
            std::uninitialized_copy(r.leaks.begin(), r.leaks.end(), leaks);
            e->facts.leaks = {leaks, r.leaks.size()};
        }
        if (hint != nullptr) {
            std::memcpy(hint, r.hint.data(), r.hint.size());
            e->facts.hint = {hint, r.hint.size()};
        }
        kept.store(index + 1, std::memory_order_release);
        return true;
    }
};

collecting_handler::collecting_handler(action answer) noexcept : storage_(nullptr), answer_(answer) {
    void* const memory = os::map(sizeof(storage), os::page_size());
    if (memory != nullptr) {
        storage_ = ::new (memory) storage;
        storage_->memory.open(text_memory);  // if refused, reports are only counted
    }
}

collecting_handler::~collecting_handler() {
    if (storage_ != nullptr) {
        storage_->memory.close();
        os::unmap(storage_, sizeof(storage));
    }
}

action collecting_handler::handle(const report& r) noexcept {
    if (storage_ == nullptr) {  // not even a count is possible: say it aloud instead
        text_handler({.abort_on_error = false}).handle(r);
        return answer_;
    }
    storage_->counts[static_cast<std::size_t>(r.kind)].fetch_add(1, std::memory_order_relaxed);
    const detail::owned_guard hold(storage_->lock);
    if (hold.has_lock() && storage_->kept.load(std::memory_order_relaxed) < capacity) {
        storage_->keep(r);
    }
    return answer_;
}

std::size_t collecting_handler::count() const noexcept {
    std::size_t sum = 0;
    for (std::size_t i = 0; i < error_kind_count; ++i) {
        sum += count(static_cast<error_kind>(i));
    }
    return sum;
}

std::size_t collecting_handler::count(error_kind kind) const noexcept {
    return storage_ == nullptr ? 0 : storage_->counts[static_cast<std::size_t>(kind)].load(std::memory_order_relaxed);
}

std::size_t collecting_handler::size() const noexcept {
    return storage_ == nullptr ? 0 : storage_->kept.load(std::memory_order_acquire);
}

const collecting_handler::entry& collecting_handler::operator[](std::size_t index) const noexcept {
    return *storage_->at(index);
}

const collecting_handler::entry& collecting_handler::back() const noexcept {
    return (*this)[size() - 1];
}

void collecting_handler::clear() noexcept {
    if (storage_ == nullptr) {
        return;
    }
    const detail::owned_guard hold(storage_->lock);
    for (auto& n : storage_->counts) {
        n.store(0, std::memory_order_relaxed);
    }
    if (hold.has_lock()) {
        storage_->kept.store(0, std::memory_order_release);
        storage_->memory.close();
        storage_->memory.open(text_memory);
    }
}

}  // namespace pmr_debug
