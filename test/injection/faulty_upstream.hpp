#pragma once

// An upstream that fails on plan, in any way an upstream may, and knows what it gave and got back.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory_resource>
#include <new>
#include <optional>

namespace injection {

enum class way { throws_bad_alloc, throws_another, null, misaligned, in_use };

struct another_exception {};

class faulty_upstream final : public std::pmr::memory_resource {
public:
    way how = way::throws_bad_alloc;
    std::uint64_t first = 0;  ///< calls to allocate that fail
    std::uint64_t last = 0;
    std::uint64_t calls = 0;
    std::uint64_t failed = 0;
    std::uint64_t wrong_frees = 0;

    [[nodiscard]] std::size_t live() const { return blocks_.size(); }

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        ++calls;
        if (calls >= first && calls <= last) {
            switch (how) {
                case way::throws_bad_alloc: ++failed; throw std::bad_alloc();
                case way::throws_another: ++failed; throw another_exception();
                case way::null: ++failed; return nullptr;
                case way::misaligned:
                    if (alignment > 1) {
                        ++failed;
                        return give(bytes, alignment, alignment / 2);
                    }
                    break;
                case way::in_use:
                    // Whether a part of a block is in use not every resource can tell; the very same block each one.
                    for (const auto& [p, b] : blocks_) {
                        if (b.bytes == bytes && b.alignment == alignment) {
                            ++failed;
                            return launder(p);
                        }
                    }
                    break;
            }
        }
        return give(bytes, alignment, 0);
    }

    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        const auto at = blocks_.find(p);
        if (at == blocks_.end() || at->second.bytes != bytes || at->second.alignment != alignment) {
            ++wrong_frees;
            return;
        }
        std::pmr::new_delete_resource()->deallocate(at->second.base, bytes + alignment, alignment);
        blocks_.erase(at);
    }

    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }

    void* give(std::size_t bytes, std::size_t alignment, std::size_t offset) {
        auto* const base =
            static_cast<unsigned char*>(std::pmr::new_delete_resource()->allocate(bytes + alignment, alignment));
        blocks_[base + offset] = {base, bytes, alignment};
        return launder(base + offset);
    }
    // The compiler may believe that allocate returns neither null nor anything misaligned.
    [[gnu::noinline]] static void* launder(void* p) {
        asm volatile("" : "+r"(p));
        return p;
    }

    struct block {
        void* base;
        std::size_t bytes;
        std::size_t alignment;
    };
    std::map<void*, block> blocks_;
};

/// A resource over one.
template <class Resource, class Options>
struct over_faulty {
    faulty_upstream upstream;
    std::optional<Resource> made;
    Resource& resource;
    explicit over_faulty(const Options& o) : resource(made.emplace(&upstream, o)) {}
    /// Effects: destroys the resource. Returns: blocks that the upstream misses.
    std::size_t end() {
        made.reset();
        return upstream.live();
    }
};

}  // namespace injection
