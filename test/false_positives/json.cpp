// nlohmann-json: on global new as it is, and with its containers on the default resource.

#include "programs.hpp"

#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory_resource>
#include <sstream>
#include <string>
#include <vector>

namespace false_positives {

namespace {

/// On the default resource of the time it was made. std::pmr::polymorphic_allocator would not do: it passes itself on
/// to elements, which basic_json says it takes, and does not.
template <class T>
class default_resource_allocator {
public:
    using value_type = T;
    default_resource_allocator() noexcept = default;
    template <class U>
    default_resource_allocator(const default_resource_allocator<U>& other) noexcept : r_(other.resource()) {}
    [[nodiscard]] T* allocate(std::size_t n) { return static_cast<T*>(r_->allocate(n * sizeof(T), alignof(T))); }
    void deallocate(T* p, std::size_t n) noexcept { r_->deallocate(p, n * sizeof(T), alignof(T)); }
    [[nodiscard]] std::pmr::memory_resource* resource() const noexcept { return r_; }
    template <class U>
    friend bool operator==(const default_resource_allocator& a, const default_resource_allocator<U>& b) noexcept {
        return *a.resource() == *b.resource();
    }

private:
    std::pmr::memory_resource* r_ = std::pmr::get_default_resource();
};

using plain_json = nlohmann::json;
using pmr_json = nlohmann::basic_json<std::map, std::vector, std::string, bool, std::int64_t, std::uint64_t, double,
                                      default_resource_allocator>;

template <class Json>
void work() {
    Json document;
    for (int i = 0; i < 40; ++i) {
        Json entry = {{"number", i}, {"text", "entry " + std::to_string(i)}, {"half", i * 0.5}, {"list", {1, 2, 3}}};
        entry["list"].push_back({{"deeper", {{"still", nullptr}}}});
        document["all"].push_back(entry);
        document["by name"]["n" + std::to_string(i)] = std::move(entry);
    }
    const std::string text = document.dump(2);
    Json read = Json::parse(text);
    expect(read == document, "json: round trip");
    for (const auto& packed : {Json::to_cbor(read), Json::to_msgpack(read)}) {
        expect(!packed.empty(), "json: packed");
    }
    expect(Json::from_cbor(Json::to_cbor(read)) == document, "json: CBOR");
    for (int i = 0; i < 40; i += 2) {
        read["by name"].erase("n" + std::to_string(i));
        read["all"].erase(read["all"].begin());
    }
    expect(read["all"].size() == 20 && read["by name"].size() == 20, "json: erased");
    read.merge_patch(document);
    const Json difference = Json::diff(read, document);
    expect(read.patch(difference) == document, "json: patch");
    expect(Json::parse(text.substr(0, text.size() / 2), nullptr, false).is_discarded(), "json: half a text");
    for (int i = 0; i < 20; ++i) {
        try {
            const Json never = Json::parse("{\"a\": [1, 2, {\"b\": }");
            expect(false, "json: no exception");
        } catch (const typename Json::parse_error&) {
        }
    }
    std::stringstream stream;
    stream << document;
    stream >> read;
    expect(read == document, "json: stream");
}

}  // namespace

void json() {
    work<plain_json>();
    work<pmr_json>();
}

}  // namespace false_positives
